// The piano roll: what was played, now, and what is planned, moving with the server's clock.

import { SharpCanvas } from "./canvas2d.js";
import { css, hueOf, rgbOf } from "./colour.js";

const PAST_SECONDS = 3.6;
const AHEAD_SECONDS = 4.4;
const LEAST_PITCHES = 30;
const FADE_SECONDS = 0.35;
// A step away from the server's own count that is caught up at once; smaller ones glide.
const JUMP_SECONDS = 0.35;
const TOP = 17;

export class PianoRoll {
  #sharp;
  #plan = null;
  #step = 0;
  #last = 0;
  #low = 45;
  #high = 81;
  #born = new Map();
  #playing = false;
  #valence = 0;

  constructor(canvas) {
    this.#sharp = new SharpCanvas(canvas);
  }

  /** Take in the server's plan, which arrived when its clock showed `now`. */
  take(plan, now) {
    const first = this.#plan === null;
    this.#plan = { ...plan, moment: plan.time ?? now };
    if (first) this.#step = plan.now_step;
    const seconds = performance.now() / 1000;
    const keys = new Set();
    for (const [start, , pitch] of plan.notes) {
      const key = 128 * start + pitch;
      keys.add(key);
      if (!this.#born.has(key)) this.#born.set(key, first ? -1 : seconds);
    }
    for (const key of this.#born.keys()) if (!keys.has(key)) this.#born.delete(key);
  }

  setPlaying(playing) {
    this.#playing = playing;
  }

  clear() {
    this.#plan = null;
    this.#born.clear();
  }

  /** Draw; `now` is the server's time, `lag` how late the sound is heard, valence gives the hue. */
  draw(now, lag, valence) {
    this.#sharp.fit();
    const { context, width, height } = this.#sharp;
    if (!width) return;
    const seconds = performance.now() / 1000;
    const passed = Math.min(0.2, seconds - this.#last);
    this.#last = seconds;
    context.clearRect(0, 0, width, height);
    this.#valence += (1 - Math.exp(-passed / 0.4)) * ((valence ?? 0) - this.#valence);
    if (!this.#plan) {
      this.#drawEmpty(context, width, height);
      return;
    }
    this.#advance(now, passed);
    const pace = this.#plan.steps_per_second || 100;
    const narrow = Math.min(1, 0.55 + width / 1600);
    const scale = width / ((PAST_SECONDS + AHEAD_SECONDS) * narrow);
    const line = Math.round((width * PAST_SECONDS) / (PAST_SECONDS + AHEAD_SECONDS));
    const heard = this.#step - (this.#playing ? lag * pace : 0);
    const view = { pace, line, heard, at: (step) => line + ((step - heard) / pace) * scale };
    this.#fitPitches(view, width, passed);
    this.#drawGrid(context, width, height, view);
    this.#drawNotes(context, width, height, view, seconds);
    this.#drawNow(context, width, height, line);
    this.#drawNames(context, height);
  }

  #advance(now, passed) {
    const { now_step: step, steps_per_second: pace, moment } = this.#plan;
    const pacing = this.#playing ? pace : 0;
    const wanted = step + pacing * Math.max(0, Math.min(1, now - moment));
    this.#step += pacing * passed;
    const off = wanted - this.#step;
    const share = Math.abs(off) > JUMP_SECONDS * (pace || 100) ? 1 : 1 - Math.exp(-passed / 0.25);
    this.#step += share * off;
  }

  #fitPitches({ at }, width, passed) {
    let low = 127;
    let high = 0;
    for (const [start, end, pitch] of this.#plan.notes) {
      if (at(start) > width || at(end ?? start) < 0) continue;
      low = Math.min(low, pitch);
      high = Math.max(high, pitch);
    }
    if (low > high) return;
    const spare = Math.max(0, LEAST_PITCHES - (high - low)) / 2 + 2;
    const share = 1 - Math.exp(-passed / 0.8);
    this.#low += share * (Math.max(0, low - spare) - this.#low);
    this.#high += share * (Math.min(127, high + spare) - this.#high);
  }

  #y(pitch, height) {
    return TOP + ((this.#high - pitch + 0.5) / (this.#high - this.#low + 1)) * (height - TOP - 2);
  }

  #drawGrid(context, width, height, { heard, pace, line, at }) {
    const { beat_steps: beat = 50, bar_steps: bar = 200 } = this.#plan;
    context.font = "10px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
    context.textBaseline = "middle";
    context.textAlign = "left";
    context.fillStyle = "rgb(148 170 220 / 0.045)";
    context.fillRect(line, TOP, width - line, height - TOP);
    for (let pitch = 12 * Math.ceil(this.#low / 12); pitch <= this.#high; pitch += 12) {
      const y = Math.round(this.#y(pitch + 0.5, height) + 3) + 0.5;
      context.fillStyle = "rgb(150 170 215 / 0.14)";
      context.fillRect(0, y, width, 1);
    }
    const first = Math.max(0, beat * Math.floor((heard - (line / width) * 8 * pace) / beat));
    for (let step = first; at(step) <= width; step += beat) {
      const x = Math.round(at(step));
      const bars = step % bar === 0;
      context.fillStyle = bars ? "rgb(160 180 225 / 0.26)" : "rgb(160 180 225 / 0.09)";
      context.fillRect(x, bars ? 0 : TOP, 1, height);
      // Numbers keep clear of the words beside the line and at the end.
      const clear = Math.abs(x + 8 - line) > 62 && x < width - 80;
      if (bars && x > 26 && clear) {
        context.fillStyle = "rgb(190 203 232 / 0.8)";
        context.fillText(String(step / bar + 1), x + 5, 9);
      }
    }
  }

  #drawNotes(context, width, height, { heard, at }, seconds) {
    const thick = Math.max(3, Math.min(11, (0.82 * (height - TOP)) / (this.#high - this.#low + 1)));
    const hue = hueOf(this.#valence);
    for (const [start, end, pitch, velocity] of this.#plan.notes) {
      const left = at(start);
      const right = end === null ? Math.max(at(heard), left) : at(end);
      if (right < 0 || left > width) continue;
      const bright = 0.3 + 0.7 * (velocity / 127);
      const wide = Math.max(3, right - left - 1);
      const y = this.#y(pitch, height) - thick / 2;
      const age = (seconds - this.#born.get(128 * start + pitch)) / FADE_SECONDS;
      context.globalAlpha = Math.max(0, Math.min(1, age));
      context.beginPath();
      context.roundRect(left, y, wide, thick, Math.min(3, thick / 2));
      if (start > heard) {
        // Planned: an outline, so that it differs by more than its colour.
        context.fillStyle = css(rgbOf(hue, 0.5, bright), 0.22);
        context.fill();
        context.strokeStyle = css(rgbOf(hue, 0.42, 0.35 + 0.65 * bright), 0.95);
        context.lineWidth = 1;
        context.stroke();
      } else if (end === null || end > heard) {
        context.shadowColor = css(rgbOf(hue, 0.55, 1), 0.9);
        context.shadowBlur = 10;
        context.fillStyle = css(rgbOf(hue, 0.14, 1));
        context.fill();
        context.shadowBlur = 0;
      } else {
        context.fillStyle = css(rgbOf(hue, 0.55, 0.28 + 0.6 * bright), 0.9);
        context.fill();
      }
    }
    context.globalAlpha = 1;
  }

  #drawNames(context, height) {
    context.font = "10px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
    context.textAlign = "left";
    for (let pitch = 12 * Math.ceil(this.#low / 12); pitch <= this.#high; pitch += 12) {
      const y = Math.round(this.#y(pitch, height));
      context.fillStyle = "rgb(6 9 18 / 0.8)";
      context.fillRect(3, y - 6, 18, 12);
      context.fillStyle = "rgb(190 203 232 / 0.9)";
      context.fillText(`C${pitch / 12 - 1}`, 5, y + 0.5);
    }
  }

  #drawEmpty(context, width, height) {
    context.font = "13px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillStyle = "rgb(170 182 210 / 0.9)";
    context.fillText("Notes appear here: played, now and planned", width / 2, height / 2);
  }

  #drawNow(context, width, height, line) {
    context.fillStyle = "rgb(255 255 255 / 0.85)";
    context.fillRect(line, 0, 1.5, height);
    context.font = "600 10px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    const room = width > 520;
    context.fillText(room ? "played" : "", line - 8, 9);
    context.textAlign = "left";
    context.fillText(this.#playing ? "now" : "held", line + 7, 9);
    context.fillStyle = "rgb(190 203 232 / 0.85)";
    context.textAlign = "right";
    context.fillText(room ? "planned" : "", width - 8, 9);
  }
}
