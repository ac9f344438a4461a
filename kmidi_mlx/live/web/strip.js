// The performance strip: figures with a grade, told by a shape and a word as well as a colour.

import { make } from "./controls.js";

const number = (value, digits = 0) => (Number.isFinite(value) ? value.toFixed(digits) : "–");
const GRADES = { good: "", eased: "on purpose", watch: "watch", bad: "too slow", none: "" };

/** Grade of a figure that should be small. */
const below = (value, fine, bearable) =>
  !Number.isFinite(value) ? "none" : value <= fine ? "good" : value <= bearable ? "watch" : "bad";

const brief = (value) => number(value, value < 99.95 ? 1 : 0);
const pair = (middle, worst) => `${brief(middle)} / ${brief(worst)} ms`;

/** Whether the player leaves something out on purpose, so that the music never waits. */
const eased = (s) => s.quality > 0;

// Each: its name and explanation, its words and its grade from the server's figures `s` and the
// page's own `p`.
const FIGURES = [
  {
    name: "Quality",
    doc: "the music comes first: what gives way on this machine, so that it never waits",
    words: (s) => (eased(s) ? "music first" : "full"),
    more: (s) => (eased(s) ? s.quality_text : ""),
    grade: (s) => (eased(s) ? "eased" : "good"),
  },
  {
    name: "Clouds",
    doc: "clouds a second from the player, and what draws them",
    words: (s) => `${number(s.fps, 1)}/s${s.draws ? `, ${s.draws}` : ""}`,
    grade: (s, p) => (!p.playing || s.draws === "off" ? "none" : eased(s) ? "eased" : below(1 / s.fps, 1 / 25, 1 / 5)),
  },
  {
    name: "Display",
    doc: "pictures a second on this screen, and script time of one",
    words: (s, p) => `${number(p.picturesPerSecond)} fps, ${number(p.scriptMs, 1)} ms`,
    // Without a graphics card it draws every second picture on purpose.
    grade: (s, p) => (p.software ? "eased" : below(1 / p.picturesPerSecond, 1 / 50, 1 / 24)),
  },
  {
    name: "Frame",
    doc: "time of a frame in the player, middle and worst in a hundred",
    words: (s) => pair(s.frame_ms_p50, s.frame_ms_p99),
    grade: () => "none",
  },
  {
    name: "Token",
    doc: "time to write one event of music, middle and worst in a hundred",
    words: (s) => pair(s.token_ms_p50, s.token_ms_p99),
    grade: () => "none",
  },
  {
    name: "Ahead",
    doc: "music that is written but not played yet",
    words: (s, p) => {
      if (!p.playing) return "–";
      const gaps = p.recentGaps ? ", ran out just now" : "";
      return `${number(s.lookahead_seconds, 1)} s, ${number(s.lookahead_bars, 1)} bars${gaps}`;
    },
    grade: (s, p) => (!p.playing ? "none" : p.recentGaps ? "bad" : below(-s.lookahead_bars, -0.5, -0.2)),
  },
  {
    name: "Late",
    doc: "how late notes were sent since the start, middle and worst in a hundred",
    words: (s) => pair(s.lateness_ms_p50, s.lateness_ms_p99),
    // One stall stays in the worst for long; it is bad where every other note is late.
    grade: (s) => (s.lateness_ms_p50 > 20 ? "bad" : below(s.lateness_ms_p99, 5, Infinity)),
  },
  {
    name: "Sound",
    doc: "sound waiting in this page, and how often it ran out",
    words: (s, p) => (p.soundOn ? `${number(1000 * p.bufferedSeconds)} ms, ${p.underruns} gaps` : "off"),
    grade: (s, p) => (p.soundOn ? below(p.recentUnderruns, 0, 4) : "none"),
  },
  {
    name: "Memory",
    doc: "of the player",
    words: (s) => `${number(s.memory_gb, 2)} GB`,
    grade: (s) => below(s.memory_gb / (s.memory_cap_gb || 16), 0.8, 0.9),
  },
  {
    name: "Dropped",
    doc: "clouds that were too late and left out",
    words: (s) => number(s.dropped_frames),
    grade: () => "none",
  },
];

export class Strip {
  #cells;

  constructor() {
    this.element = make("dl", { class: "strip", "aria-label": "Performance" });
    this.#cells = FIGURES.map(({ name, doc }) => {
      const value = make("dd", { "data-grade": "none" }, "–");
      this.element.append(make("div", { title: doc, class: name.toLowerCase() }, make("dt", {}, name), value));
      return value;
    });
  }

  /** Show the server's figures and the page's own. */
  show(stats, page) {
    for (const [index, { words, grade, more }] of FIGURES.entries()) {
      const cell = this.#cells[index];
      const judged = grade(stats, page);
      const text = words(stats, page);
      const details = more?.(stats) ?? "";
      if (cell.textContent === text && cell.dataset.grade === judged && cell.title === details) continue;
      cell.textContent = text;
      cell.dataset.grade = judged;
      cell.title = details;
      cell.setAttribute("aria-label", [text, details, GRADES[judged]].filter(Boolean).join(", "));
    }
  }
}
