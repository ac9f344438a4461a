// The panel: everything that can be set, in groups, built from what the server describes.

import { chooser, make, segments, slider, textField, toggle } from "./controls.js";

const SEND_MS = 60;
const LEVELS_OF_DETAIL = [200, 600, 1200, 2000, 3000];
const NOTE_NAMES = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];
const MODES = {
  compose: "Compose: it plays alone",
  duet: "Duet: it answers when you pause",
  accompany: "Accompany: it plays under you",
  continue: "Continue: it goes on from you",
};
const SOURCES = {
  auto: "Automatic",
  network: "The network",
  engine: "The deterministic engine",
  off: "Nobody: no cloud",
};

const OWN_PORTS = [["", "none"], ["virtual", "KmiDi, a port of its own"]];

const noteName = (pitch) => `${NOTE_NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}`;
const fixed = (digits) => (value) => Number(value).toFixed(digits);
const whole = (value) => String(Math.round(value));
const beats = (value) => `${whole(value)} beats/min`;
const percent = (value) => `${whole(100 * value)} %`;
const guidance = (value) => (value === 1 ? "1.0, off" : fixed(1)(value));

// What is shown, by the option's name. Ranges narrower than the server's are where it is musical.
const GROUPS = [
  { title: "Music", open: true, options: [
    { name: "music.tempo", kind: "slider", text: "Tempo", step: 1, low: 40, high: 220, words: beats },
    { name: "music.chords", kind: "text", text: "Chords, one a bar", placeholder: "C Am F G (empty: free)" },
    { name: "music.key", kind: "text", text: "Key", placeholder: "C:maj or A:min (empty: free)" },
    { name: "sampling.max_polyphony", kind: "slider", text: "Notes at once", step: 1, high: 32, words: whole },
    { name: "sampling.lowest_pitch", kind: "slider", text: "Lowest note", step: 1, low: 21, high: 108, words: noteName },
    { name: "sampling.highest_pitch", kind: "slider", text: "Highest note", step: 1, low: 21, high: 108, words: noteName },
  ] },
  { title: "Imagination", options: [
    { name: "sampling.temperature", kind: "slider", text: "Temperature", step: 0.01, high: 2, words: fixed(2) },
    { name: "sampling.top_p", kind: "slider", text: "Top-p", step: 0.01, low: 0.05, words: fixed(2) },
    { name: "sampling.guidance_scale", kind: "slider", text: "Guidance by emotion", step: 0.1, high: 5, words: guidance },
    { name: "music.seed", kind: "seed", text: "Seed" },
    { name: "adapter", kind: "adapter", text: "Adapter" },
  ] },
  { title: "Cloud", options: [
    { name: "cloud.source", kind: "choice", text: "Drawn by", words: SOURCES },
    { name: "cloud.points", kind: "detail", text: "Points" },
    { name: "cloud.listen", kind: "text", text: "Listens to", placeholder: "the music; a sound file; input" },
    { name: "cloud.feel", kind: "toggle", text: "Let what is heard set the emotion" },
  ] },
  { title: "Sound", options: [
    { name: "sound.volume", kind: "slider", text: "Loudness of the piano", step: 0.01, words: percent },
    { name: "sound.device", kind: "text", text: "Sound card of the player", placeholder: "none; default for the usual one" },
  ] },
  { title: "Keyboard and MIDI", options: [
    { name: "music.mode", kind: "choice", text: "With a keyboard", words: MODES },
    { name: "ports.input", kind: "port", text: "Keyboard", list: "inputs" },
    { name: "ports.output", kind: "port", text: "Play on", list: "outputs" },
    { name: "ports.channel", kind: "slider", text: "Channel", step: 1, words: whole },
  ] },
];

export class Panel {
  #home;
  #link;
  #controls = new Map();
  #state = null;
  #pending = new Map();
  #written;
  #recording;

  constructor(home, link) {
    this.#home = home;
    this.#link = link;
  }

  /** Build all groups from the answer of `describe`. */
  build(description) {
    const known = new Map(description.options.map((option) => [option.name, option]));
    this.#controls.clear();
    const groups = GROUPS.map(({ title, open, options }) => {
      const items = make("div", { class: "items" });
      for (const wish of options) {
        const option = known.get(wish.name) ?? (wish.kind === "adapter" ? {} : null);
        // An older server may not know it; what cannot be set is not shown.
        if (!option) continue;
        const control = this.#control(wish, option);
        this.#controls.set(wish.name, control);
        items.append(control.element);
      }
      return this.#group(title, open, items);
    });
    groups.push(this.#recordings());
    this.#home.replaceChildren(...groups);
    this.#findPorts();
    if (this.#state) this.show(this.#state);
  }

  /** Show the server's state. */
  show(state) {
    this.#state = state;
    for (const [dotted, control] of this.#controls) {
      const [section, name] = dotted.split(".");
      const value = state[section]?.[name];
      if (value !== undefined && !this.#pending.has(dotted)) control.show(value);
    }
    const recording = Boolean(state.recording);
    if (this.#recording) this.#recording.hidden = !recording;
  }

  /** List files that a recording has written. */
  addWritten(files) {
    if (!this.#written) return;
    const lines = files.map((file) => make("li", {}, typeof file === "string" ? file : file.path));
    this.#written.prepend(...lines);
    this.#written.closest("details").open = true;
    this.#written.previousElementSibling.hidden = true;
  }

  #group(title, open, items) {
    const shut = make("small");
    const group = make("details", { class: "group", open }, make("summary", {}, title, shut), items);
    const summarise = () => {
      const names = [...items.querySelectorAll(".name, .switch")].map((name) => name.textContent);
      shut.textContent = names.join(", ").toLowerCase();
    };
    summarise();
    return group;
  }

  #control(wish, option) {
    const { name, text, kind, words } = wish;
    const base = { text, doc: option.doc, change: (value) => this.#send(name, value) };
    switch (kind) {
      case "slider":
        return slider({
          ...base, words, step: wish.step,
          low: wish.low ?? option.low,
          high: wish.high ?? option.high,
        });
      case "text":
        return textField({ ...base, placeholder: wish.placeholder });
      case "seed":
        return this.#seed(base);
      case "choice":
        return chooser({
          ...base,
          choices: (option.choices ?? []).map((choice) => [choice, words[choice] ?? choice]),
        });
      case "detail":
        return segments({
          ...base, choices: LEVELS_OF_DETAIL.map((points) => [points, String(points)]),
        });
      case "toggle":
        return toggle(base);
      case "port":
        return chooser({ ...base, choices: OWN_PORTS });
      default:
        return chooser({
          ...base, disabled: true, choices: [["", "none"]],
          hint: "There are no adapters yet: one appears here once it has been trained.",
        });
    }
  }

  #seed(base) {
    const button = make("button", { class: "button small", type: "button" }, "New");
    button.addEventListener("click", () => base.change(Math.floor(Math.random() * 2 ** 31)));
    button.setAttribute("aria-label", "New seed");
    return textField({ ...base, number: true, button });
  }

  #recordings() {
    this.#written = make("ul", { class: "written", "aria-label": "Files written" });
    this.#recording = make("p", { class: "hint", hidden: true }, "Recording now.");
    const text = "Nothing has been recorded yet. Record writes into the player's output folder.";
    const empty = make("p", { class: "hint" }, text);
    const lines = make("div", { class: "control" }, this.#recording, empty, this.#written);
    const items = make("div", { class: "items" }, lines);
    const group = this.#group("Recordings", false, items);
    group.querySelector("small").textContent = "files written";
    return group;
  }

  async #findPorts() {
    let found;
    try {
      found = await this.#link.command("ports");
    } catch {
      // Without a list there are still the ports that need none.
      return;
    }
    for (const { options } of GROUPS) {
      for (const { name, kind, list } of options) {
        if (kind !== "port") continue;
        const control = this.#controls.get(name);
        const others = (found[list] ?? []).filter((port) => port !== "virtual");
        control.offer([...OWN_PORTS, ...others.map((port) => [port, port])]);
        const [section, key] = name.split(".");
        if (this.#state) control.show(this.#state[section][key]);
      }
    }
  }

  /** Send a value, at most every 60 ms; the last one always. */
  #send(name, value) {
    const waiting = this.#pending.get(name);
    if (waiting) {
      waiting.value = value;
      return;
    }
    const item = { value };
    this.#pending.set(name, item);
    setTimeout(() => this.#deliver(name, item), SEND_MS);
  }

  async #deliver(name, item) {
    const control = this.#controls.get(name);
    const sent = item.value;
    try {
      await this.#link.command("set", { [name]: sent });
      control.fault(null);
    } catch (error) {
      control.fault(error.message);
    }
    if (item.value !== sent) {
      setTimeout(() => this.#deliver(name, item), SEND_MS);
      return;
    }
    this.#pending.delete(name);
    if (this.#state) this.show(this.#state);
  }
}
