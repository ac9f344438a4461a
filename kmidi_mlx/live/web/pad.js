// The emotion pad: valence to the right, arousal upwards; dragged, touched or moved by arrow keys.
//
// Events: "change" {valence, arousal}, at most 25 a second, the last one always.

import { SharpCanvas } from "./canvas2d.js";
import { css, hueOf, rgbOf } from "./colour.js";

const SEND_MS = 40;
// While a person holds the point, and shortly after, the server's echo does not move it.
const HOLD_MS = 600;
const TRAIL_SECONDS = 2.5;
const STEP = 0.05;
const LONG_STEP = 0.2;
const FIELD_SIDE = 64;
/** Words of the page: those on the pad are those that have a button, and no others are said. */
export const WORDS = [
  "happy", "pleased", "excited", "tense", "angry", "frustrated", "sad", "gloomy",
  "sleepy", "dreamy", "calm", "tender", "neutral",
];
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

const limited = (value) => Math.max(-1, Math.min(1, value));

export class EmotionPad extends EventTarget {
  valence = 0;
  arousal = 0;
  #element;
  #sharp;
  #labels = {};
  #field = document.createElement("canvas");
  #felt = null;
  #trail = [];
  #held = -Infinity;
  #dragging = null;
  #sent = -Infinity;
  #timer = 0;
  #reduced = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(element) {
    super();
    this.#element = element;
    this.#sharp = new SharpCanvas(element.querySelector("canvas"));
    this.#paintField();
    element.addEventListener("pointerdown", (event) => {
      // A second finger does not take the point away from the first.
      if (this.#dragging !== null || event.button) return;
      this.#dragging = event.pointerId;
      element.setPointerCapture(event.pointerId);
      this.#follow(event);
    });
    element.addEventListener("pointermove", (event) => {
      if (event.pointerId === this.#dragging) this.#follow(event);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      element.addEventListener(name, (event) => {
        if (event.pointerId === this.#dragging) this.#dragging = null;
      });
    }
    element.addEventListener("keydown", (event) => this.key(event));
    this.#tell();
  }

  /** Words and their points {name: [valence, arousal]}; those of the page are taken. */
  setLabels(labels) {
    this.#labels = Object.fromEntries(
      WORDS.filter((word) => labels[word]).map((word) => [word, labels[word]]),
    );
    this.#tell();
  }

  /** Nearest word to a point. */
  nearest(valence = this.valence, arousal = this.arousal) {
    let best = "";
    let least = Infinity;
    for (const [name, [v, a]] of Object.entries(this.#labels)) {
      const far = Math.hypot(v - valence, a - arousal);
      if (far < least) [best, least] = [name, far];
    }
    return best;
  }

  /** Move the point because the server says so. */
  show(valence, arousal) {
    if (this.#dragging !== null || performance.now() - this.#held < HOLD_MS) return;
    this.#place(valence, arousal);
  }

  /** Move the point because a person wants it, as a preset does. */
  choose(valence, arousal) {
    this.#held = performance.now();
    this.#place(valence, arousal);
    this.#announce();
  }

  /** Show what the cloud feels now, which follows the point slowly; null: unknown. */
  feel(felt) {
    this.#felt = felt;
  }

  /** Take an arrow key, from here or from the whole page; returns whether it was one. */
  key(event) {
    const direction = KEYS[event.key];
    const home = event.key === "Home" && event.target === this.#element;
    if ((!direction && !home) || event.ctrlKey || event.metaKey || event.altKey) return false;
    event.preventDefault();
    event.stopPropagation();
    if (home) {
      this.choose(0, 0);
    } else {
      const step = event.shiftKey ? LONG_STEP : STEP;
      // Whole hundredths, so that ten steps right and ten left come home.
      const moved = (value, by) => limited(Math.round(100 * (value + step * by)) / 100);
      this.choose(moved(this.valence, direction[0]), moved(this.arousal, direction[1]));
    }
    return true;
  }

  #follow(event) {
    const box = this.#element.getBoundingClientRect();
    const round = (value) => Math.round(1000 * limited(value)) / 1000;
    this.choose(
      round((2 * (event.clientX - box.left)) / box.width - 1),
      round(1 - (2 * (event.clientY - box.top)) / box.height),
    );
  }

  #place(valence, arousal) {
    if (valence === this.valence && arousal === this.arousal) return;
    this.valence = valence;
    this.arousal = arousal;
    this.#trail.push([performance.now() / 1000, valence, arousal]);
    this.#tell();
  }

  #tell() {
    const words = `${this.nearest()}: valence ${this.valence.toFixed(2)}, arousal ${this.arousal.toFixed(2)}`;
    this.#element.setAttribute("aria-valuetext", words.replace(/^: /, ""));
    this.#element.setAttribute("aria-valuenow", this.valence.toFixed(2));
    this.dispatchEvent(new Event("move"));
  }

  #announce() {
    clearTimeout(this.#timer);
    const wait = this.#sent + SEND_MS - performance.now();
    if (wait > 0) {
      this.#timer = setTimeout(() => this.#announce(), wait);
      return;
    }
    this.#sent = performance.now();
    const detail = { valence: this.valence, arousal: this.arousal };
    this.dispatchEvent(new CustomEvent("change", { detail }));
  }

  /** Draw; `now` in seconds of performance.now() / 1000. */
  draw(now) {
    this.#sharp.fit();
    const { context, width, height } = this.#sharp;
    if (!width) return;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#field, 0, 0, width, height);
    this.#drawAxes(context, width, height);
    this.#drawWords(context, width, height);
    this.#drawTrail(context, width, height, now);
    this.#drawPoint(context, width, height);
  }

  #at(valence, arousal, width, height) {
    // A point at the rim stays wholly visible.
    const rim = 9;
    return [
      rim + ((width - 2 * rim) * (valence + 1)) / 2,
      rim + ((height - 2 * rim) * (1 - arousal)) / 2,
    ];
  }

  #drawAxes(context, width, height) {
    context.strokeStyle = "rgb(255 255 255 / 0.13)";
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(Math.round(width / 2) + 0.5, 0);
    context.lineTo(Math.round(width / 2) + 0.5, height);
    context.moveTo(0, Math.round(height / 2) + 0.5);
    context.lineTo(width, Math.round(height / 2) + 0.5);
    context.stroke();
  }

  #drawWords(context, width, height) {
    context.font = "500 11px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    const near = this.nearest();
    const [px, py] = this.#at(this.valence, this.arousal, width, height);
    // The names of the directions stand at the rim already, and the point hides what it is on.
    const taken = [
      { x: px, y: py, half: 9 },
      { x: width / 2 + 34, y: 10, half: 32 }, { x: width / 2 + 28, y: height - 10, half: 28 },
      { x: 40, y: height / 2 + 11, half: 42 }, { x: width - 34, y: height / 2 + 11, half: 36 },
    ];
    const known = Object.keys(this.#labels);
    const order = [near, ...known.filter((word) => word !== near)];
    for (const name of known) {
      const [x, y] = this.#at(...this.#labels[name], width, height);
      context.fillStyle = "rgb(255 255 255 / 0.28)";
      context.beginPath();
      context.arc(x, y, 1.3, 0, 7);
      context.fill();
    }
    for (const name of order) {
      if (!this.#labels[name]) continue;
      const [x, y] = this.#at(...this.#labels[name], width, height);
      const half = context.measureText(name).width / 2 + 5;
      const middle = Math.max(half, Math.min(width - half, x));
      const box = [y - 10, y + 11, y - 19, y + 20]
        .filter((line) => line > 8 && line < height - 8)
        .map((line) => ({ x: middle, y: line }))
        .find(({ x: column, y: line }) =>
          taken.every(
            (other) => Math.abs(other.x - column) > half + other.half || Math.abs(other.y - line) > 15,
          ),
        );
      if (!box) continue;
      taken.push({ ...box, half });
      context.fillStyle = name === near ? "#fff" : "rgb(235 240 255 / 0.72)";
      context.fillText(name, box.x, box.y);
    }
  }

  #drawTrail(context, width, height, now) {
    while (this.#trail.length && now - this.#trail[0][0] > TRAIL_SECONDS) this.#trail.shift();
    if (this.#reduced.matches) return;
    context.lineCap = "round";
    for (let k = 1; k < this.#trail.length; k += 1) {
      const [time, valence, arousal] = this.#trail[k];
      const fresh = 1 - (now - time) / TRAIL_SECONDS;
      context.strokeStyle = `rgb(255 255 255 / ${(0.5 * fresh ** 2).toFixed(3)})`;
      context.lineWidth = 1 + 4 * fresh;
      context.beginPath();
      context.moveTo(...this.#at(this.#trail[k - 1][1], this.#trail[k - 1][2], width, height));
      context.lineTo(...this.#at(valence, arousal, width, height));
      context.stroke();
    }
  }

  #drawPoint(context, width, height) {
    const [x, y] = this.#at(this.valence, this.arousal, width, height);
    if (this.#felt) {
      const [fx, fy] = this.#at(this.#felt.valence, this.#felt.arousal, width, height);
      context.strokeStyle = "rgb(255 255 255 / 0.75)";
      context.lineWidth = 1.25;
      context.setLineDash([3, 3]);
      context.beginPath();
      context.arc(fx, fy, 13, 0, 7);
      context.stroke();
      context.setLineDash([]);
    }
    const tint = rgbOf(hueOf(this.valence), 0.45, 1);
    const glow = context.createRadialGradient(x, y, 0, x, y, 30);
    glow.addColorStop(0, css(tint, 0.6));
    glow.addColorStop(1, css(tint, 0));
    context.fillStyle = glow;
    context.fillRect(x - 30, y - 30, 60, 60);
    context.fillStyle = "#fff";
    context.beginPath();
    context.arc(x, y, 7, 0, 7);
    context.fill();
    context.strokeStyle = "rgb(6 9 18 / 0.9)";
    context.lineWidth = 1.5;
    context.stroke();
  }

  /** Paint the colours of the whole square once, small; the browser enlarges them smoothly. */
  #paintField() {
    this.#field.width = this.#field.height = FIELD_SIDE;
    const context = this.#field.getContext("2d");
    const image = context.createImageData(FIELD_SIDE, FIELD_SIDE);
    for (let row = 0; row < FIELD_SIDE; row += 1) {
      for (let column = 0; column < FIELD_SIDE; column += 1) {
        const valence = (2 * column) / (FIELD_SIDE - 1) - 1;
        const arousal = 1 - (2 * row) / (FIELD_SIDE - 1);
        const strong = Math.min(1, Math.hypot(valence, arousal));
        const value = 0.13 + 0.17 * (0.5 + 0.5 * arousal) + 0.1 * strong;
        const colour = rgbOf(hueOf(valence), 0.35 + 0.38 * strong, value);
        image.data.set([...colour, 255], 4 * (row * FIELD_SIDE + column));
      }
    }
    context.putImageData(image, 0, 0);
  }
}
