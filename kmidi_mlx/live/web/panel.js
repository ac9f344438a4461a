// The panel: everything that can be set, in groups, built from what the server describes.

import { chooser, make, segments, slider, textField, toggle } from "./controls.js";
import { StyleControl } from "./styles.js";

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

const FEW_MODES_TEXT = "Without a keyboard there is nobody to answer: choose one above.";
// What can be chosen for a device, from the answer of `ports`; the machine's own are named in it.
const own = (found, list) => (found[list] ?? []).filter((name) => name !== "virtual");
const named = (names) => names.map((name) => [name, name]);
const virtual = (found, list) =>
  found[list]?.includes("virtual") ? [["virtual", "KmiDi, a port for other programs"]] : [];
const DEVICES = {
  "ports.input": (found) => [["", "none"], ...virtual(found, "inputs"), ...named(own(found, "inputs"))],
  "ports.output": (found) => [["", "none"], ...virtual(found, "outputs"), ...named(own(found, "outputs"))],
  "sound.device": (found) =>
    found.sound_outputs?.length
      ? [["", "none"], ["default", "The usual one"], ...named(found.sound_outputs)]
      : [["", "none"]],
  "cloud.listen": (found) =>
    found.sound_inputs?.length
      ? [["", "The music itself"], ["input", "The usual microphone"],
         ...found.sound_inputs.map((name) => [`input:${name}`, name])]
      : [["", "The music itself"]],
};

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
  ] },
  { title: "Cloud", options: [
    { name: "cloud.source", kind: "choice", text: "Drawn by", words: SOURCES },
    { name: "cloud.points", kind: "detail", text: "Points" },
    { name: "cloud.listen", kind: "device", text: "Listens to",
      other: { words: "A sound file", placeholder: "its name in the folder of recordings" } },
    { name: "cloud.feel", kind: "toggle", text: "Let what is heard set the emotion" },
  ] },
  { title: "Sound", options: [
    { name: "sound.volume", kind: "slider", text: "Loudness of the piano", step: 0.01, words: percent },
    { name: "sound.device", kind: "device", text: "Sound card of the player" },
  ] },
  { title: "Keyboard and MIDI", options: [
    { name: "ports.input", kind: "device", text: "Keyboard",
      other: { words: "Another program, by network", placeholder: "socket:PORT" } },
    { name: "music.mode", kind: "choice", text: "With a keyboard", words: MODES },
    { name: "ports.output", kind: "device", text: "Play on",
      other: { words: "Another program, by network", placeholder: "socket:HOST:PORT" } },
    { name: "ports.channel", kind: "slider", text: "MIDI channel", step: 1, words: whole },
  ] },
];

export class Panel {
  #home;
  #link;
  #controls = new Map();
  #state = null;
  #found = null;
  #pending = new Map();
  #written;
  #recording;
  #style = null;

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
        const option = known.get(wish.name);
        // An older server may not know it; what cannot be set is not shown.
        if (!option) continue;
        const control = this.#control(wish, option);
        this.#controls.set(wish.name, control);
        items.append(control.element);
      }
      if (title === "Music" && description.commands.includes("load_adapter")) {
        this.#style = new StyleControl(this.#link);
        items.prepend(...this.#style.elements);
      }
      return this.#group(title, open, items);
    });
    groups.push(this.#recordings());
    this.#home.replaceChildren(...groups);
    this.#findDevices();
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
    this.#style?.show(state.adapters ?? []);
    this.#explain(state);
    const recording = Boolean(state.recording);
    if (this.#recording) this.#recording.hidden = !recording;
  }

  /** List files that a recording has written. */
  addWritten(files) {
    if (!this.#written) return;
    const lines = files.map((file) => make("li", {}, file));
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
    // A keyboard may have been plugged in since.
    const hasDevices = items.querySelector("[data-device]") !== null;
    if (hasDevices) group.addEventListener("toggle", () => group.open && this.#findDevices());
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
      default: {
        const control = chooser({ ...base, other: wish.other, choices: DEVICES[name]({}) });
        control.element.dataset.device = name;
        return control;
      }
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

  /** Have what is there now to choose from. */
  async #findDevices() {
    let found;
    try {
      found = await this.#link.command("ports");
    } catch {
      // Without a list there are still the devices that need none.
      return;
    }
    this.#found = found;
    for (const [name, choices] of Object.entries(DEVICES)) {
      this.#controls.get(name)?.offer(choices(found));
    }
    if (this.#state) this.show(this.#state);
  }

  /** Say what has to be chosen before something else has any effect. */
  #explain({ ports, cloud, sound, music }) {
    const explain = (name, ...words) => this.#controls.get(name)?.explain(...words);
    explain("music.mode", ports.input || music.mode === "compose" ? null : FEW_MODES_TEXT);
    const listens = Boolean(cloud.listen);
    explain("cloud.feel", listens ? null : "For a file or a microphone, chosen above.", !listens && !cloud.feel);
    const channel = this.#controls.get("ports.channel");
    if (channel) channel.element.hidden = !ports.output;
    if (!this.#found) return;
    const none = !sound.device && !this.#found.sound_outputs?.length;
    explain("sound.device", none ? "No sound card was found where the player runs; this page can play." : null, none);
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
