// What the page has to tell: notices that hold, passing ones, and the veil over the stage.

import { icon, make } from "./controls.js";

const PASSING_SECONDS = 8;
const MOST_PASSING = 3;
// What holds is read once; then it folds into its sign and leaves the stage to the cloud.
const FOLD_SECONDS = { info: 10, warning: 20 };

export class Notices {
  #home;
  #standing = new Map();
  #dismissed = new Set();

  constructor(home) {
    this.#home = home;
  }

  /** Show exactly these standing notices [{topic, level, text}], but those that were closed. */
  standing(notices) {
    const wanted = new Map(notices.map((notice) => [`${notice.topic}: ${notice.text}`, notice]));
    for (const [key, element] of this.#standing) {
      if (wanted.has(key)) continue;
      element.remove();
      this.#standing.delete(key);
    }
    for (const [key, notice] of wanted) {
      if (this.#standing.has(key) || this.#dismissed.has(key)) continue;
      const element = this.#make(notice, () => {
        this.#dismissed.add(key);
        this.#standing.delete(key);
      });
      this.#standing.set(key, element);
      this.#home.prepend(element);
      const seconds = FOLD_SECONDS[notice.level];
      if (seconds) setTimeout(() => fold(element, true), 1000 * seconds);
    }
  }

  /** Show something for some seconds; level is info, warning or error. */
  pass(level, text) {
    const passing = this.#home.querySelectorAll("[data-passing]");
    for (const other of passing) if (other.dataset.passing === text) return;
    if (passing.length >= MOST_PASSING) passing[0].remove();
    const element = this.#make({ level, text }, () => {});
    element.dataset.passing = text;
    this.#home.append(element);
    setTimeout(() => element.remove(), 1000 * PASSING_SECONDS);
  }

  #make({ level, text }, closed) {
    const shape = ["info", "warning", "error"].includes(level) ? level : "info";
    const close = make("button", { class: "button small square", type: "button", "aria-label": "Close notice" }, icon("close"));
    const sign = make("button", { class: "sign", type: "button", "aria-expanded": "true", "aria-label": `Notice: ${text}` }, icon(shape));
    const element = make("div", { class: `notice ${shape}` }, sign, make("p", {}, text), close);
    sign.addEventListener("click", () => fold(element, !element.classList.contains("folded")));
    element.querySelector("p").addEventListener("click", () => element.classList.toggle("whole"));
    close.addEventListener("click", () => {
      closed();
      element.remove();
    });
    return element;
  }
}

/** Fold a notice into its sign, or show it whole. */
function fold(element, folded) {
  element.classList.toggle("folded", folded);
  element.querySelector(".sign").setAttribute("aria-expanded", String(!folded));
}

/** The veil: why there is nothing to see yet, or no longer. */
export class Veil {
  #element;
  #shown = "";

  constructor(element) {
    this.#element = element;
  }

  /** Show a title and a text, with a ring while something goes on and a button to try again. */
  show(title, text, { busy = false, retry = false } = {}) {
    const [ring, strong, span, button] = this.#element.children;
    ring.hidden = !busy;
    button.hidden = !retry;
    // Rewriting the same words would have a screen reader say them again.
    if (this.#shown !== title + text) {
      strong.textContent = title;
      span.textContent = text;
      this.#shown = title + text;
    }
    this.#element.hidden = false;
  }

  hide() {
    this.#element.hidden = true;
    this.#shown = "";
  }
}
