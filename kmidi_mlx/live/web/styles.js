// The style: which adapters of the model play, and how much of them.

import { chooser, make, slider } from "./controls.js";

const NONE_TEXT = "There are none yet. “kmidi finetune” teaches one, from music of your own.";
// Several may be on, by the wish of other front ends; none is called so.
const SEVERAL = "\u0000several";
const USUAL_SCALE = 1;

const percent = (scale) => `${Math.round(100 * scale)} %`;

export class StyleControl {
  #link;
  #choice;
  #amounts = make("div", { class: "items amounts" });
  #sliders = new Map();
  #offered = "";
  #sending = false;
  #waiting = null;
  #rows = [];

  constructor(link) {
    this.#link = link;
    this.#choice = chooser({
      text: "Style",
      doc: "what kmidi finetune taught the model",
      change: (name) => this.#choose(name),
    });
    // One may have been taught since.
    this.#choice.element.querySelector("select").addEventListener("focus", () => this.#look());
    this.#look();
  }

  /** What stands in the panel. */
  get elements() {
    return [this.#choice.element, this.#amounts];
  }

  /** Show adapters [{name, scale}]; a scale of 0: it does not play. */
  show(rows) {
    this.#rows = rows;
    const on = rows.filter(({ scale }) => scale !== 0);
    const names = on.map(({ name }) => name);
    const choices = [["", "none"], ...rows.map(({ name }) => [name, name])];
    if (on.length > 1) choices.push([SEVERAL, names.join(" + ")]);
    const offered = JSON.stringify(choices);
    // A list that is open is left alone while it stays the same.
    if (offered !== this.#offered) {
      this.#offered = offered;
      this.#choice.offer(choices);
    }
    if (this.#sending) return;
    this.#choice.show(on.length > 1 ? SEVERAL : (names[0] ?? ""));
    this.#choice.explain(rows.length ? null : NONE_TEXT, !rows.length);
    this.#showAmounts(on);
  }

  #showAmounts(on) {
    const names = on.map(({ name }) => name);
    if (names.join("\n") !== [...this.#sliders.keys()].join("\n")) {
      this.#sliders = new Map(names.map((name) => [name, this.#slider(name, names.length > 1)]));
      this.#amounts.replaceChildren(...[...this.#sliders.values()].map(({ element }) => element));
      this.#amounts.hidden = !names.length;
    }
    for (const { name, scale } of on) this.#sliders.get(name).show(scale);
  }

  #slider(name, named) {
    return slider({
      text: named ? `Amount of ${name}` : "Amount of the style",
      doc: "100 % is as it was taught",
      low: 0.05,
      high: 2,
      step: 0.05,
      words: percent,
      change: (scale) => this.#send({ name, scale }),
    });
  }

  #choose(name) {
    if (name === SEVERAL) return;
    this.#send(name ? { name, scale: USUAL_SCALE, alone: true } : { name: null });
  }

  /** See what there is now. */
  async #look() {
    try {
      const { adapters } = await this.#link.command("adapters");
      this.show(adapters);
    } catch {
      // Until the models are warm nobody can say; the state tells it then.
    }
  }

  /** Send a wish; of those that come meanwhile the last one counts. */
  async #send(wish) {
    this.#waiting = wish;
    if (this.#sending) return;
    this.#sending = true;
    try {
      while (this.#waiting) {
        const next = this.#waiting;
        this.#waiting = null;
        try {
          const { adapters } = await this.#link.command("load_adapter", next);
          this.#rows = adapters;
          this.#choice.fault(null);
        } catch (error) {
          this.#choice.fault(error.message);
        }
      }
    } finally {
      this.#sending = false;
      this.show(this.#rows);
    }
  }
}
