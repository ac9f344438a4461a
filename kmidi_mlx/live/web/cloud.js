// The cloud: keeps the last frames, shows the moment between two of them at the display's rate.
//
// Frames carry the server's time. The picture is shown a little later than the newest frame, so that
// there is always one to move towards, whether clouds come sixty or five times a second.

import { Camera } from "./camera.js";
import { CloudRenderer } from "./cloud-gl.js";

const MOST_FRAMES = 90;
const LONGEST_DELAY_SECONDS = 0.6;
// With reduced motion a cloud fades into the one a second later.
const SLOW_FADE_SECONDS = 1;
const MOST_PIXELS = 6e6;
const MEASURE_MS = 900;
const SLOW_FRAME_MS = 26;
const QUICK_FRAME_MS = 18.5;
const LEAST_RESOLUTION = 0.35;
const SOFTWARE_RESOLUTION = 0.45;
// Without a graphics card drawing takes the processor from the music: every second picture will do.
const SOFTWARE_EVERY = 2;
const SPARING_EVERY = 6;

/** Value of an IEEE 754 half float. */
function half(bits) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024);
  return bits & 0x8000 ? -size : size;
}

export class CloudView {
  /** Emotion that the cloud shown now feels: {valence, arousal}, or null. */
  felt = null;
  camera = new Camera();
  /** Figures of drawing: milliseconds of script a frame, pictures a second, share of resolution,
   * whether the processor draws. */
  figures = { scriptMs: 0, picturesPerSecond: 0, resolution: 1, software: false };
  /** Whether frames are shown brightly; they go dim where the connection is lost. */
  bright = true;
  /** Whether the player has no time to spare: a processor that draws as well then draws less. */
  sparing = false;
  /** Called when drawing starts or stops being possible, with a sentence or null. */
  onproblem = () => {};
  #canvas;
  #stage;
  #renderer = null;
  #frames = [];
  #reduced;
  #delay = 0.1;
  #needs = [];
  #mist = [0, 0, 0];
  #light = 0;
  #lastDraw = 0;
  #every = 1;
  #turn = 0;
  #intervals = [];
  #quick = 0;
  #ceiling = 1;
  #dirty = true;
  #place = { density: 1, centre: [0, 0], stage: 1 };

  constructor(canvas, stage) {
    this.#canvas = canvas;
    this.#stage = stage;
    this.camera.attach(stage);
    this.#reduced = matchMedia("(prefers-reduced-motion: reduce)");
    const settle = () => (this.camera.swings = !this.#reduced.matches);
    this.#reduced.addEventListener("change", settle);
    settle();
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      this.#renderer = null;
      this.onproblem("The graphics driver was reset; the cloud comes back in a moment.");
    });
    canvas.addEventListener("webglcontextrestored", () => this.#start());
    const observer = new ResizeObserver(() => (this.#dirty = true));
    observer.observe(canvas);
    observer.observe(stage);
    this.#start();
  }

  get drawing() {
    return this.#renderer !== null;
  }

  /** Take in a cloud frame that has arrived; `now` is the server's time. */
  push({ header, buffer }, now) {
    const { rows, columns, start, time, first: valence, second: arousal } = header;
    if (columns !== 10 || !rows) return;
    const bytes = new Uint8Array(buffer, start, 20 * rows);
    const newest = this.#frames.at(-1);
    if (newest && time <= newest.time) {
      // The server has started anew: its clock may begin anywhere.
      if (newest.time - time < 1) return;
      this.clear();
    }
    const fade = this.#reduced.matches ? SLOW_FADE_SECONDS : 0;
    if (newest && time - newest.time < fade) return;
    if (newest) {
      // How long ago the frame before the next one will be, when the next one arrives.
      this.#needs.push(now - time + 1.1 * Math.min(LONGEST_DELAY_SECONDS, time - newest.time));
      if (this.#needs.length > 12) this.#needs.shift();
    }
    this.#frames.push({ rows, bytes, time, valence, arousal, mist: meanColour(bytes, rows) });
    if (this.#frames.length > MOST_FRAMES) this.#frames.shift();
  }

  clear() {
    this.#frames = [];
    this.#needs = [];
  }

  /**
   * Draw the picture of this moment.
   *
   * now: the server's time; lag: seconds by which the sound is heard late, so that eye and ear
   * agree; moment: of requestAnimationFrame, in milliseconds.
   */
  draw(now, lag, moment) {
    if (++this.#turn % this.#pace) return;
    const seconds = Math.min(0.2, (moment - this.#lastDraw) / 1000);
    this.#measure(moment - this.#lastDraw);
    this.#lastDraw = moment;
    const view = this.camera.advance(seconds);
    if (!this.#renderer || this.#renderer.lost) return;
    const begun = performance.now();
    if (this.#dirty) this.#resize();
    const wanted = this.#needs.length ? Math.max(...this.#needs) : 0.1;
    const limit = LONGEST_DELAY_SECONDS + (this.#reduced.matches ? SLOW_FADE_SECONDS : 0);
    this.#delay += (1 - Math.exp(-seconds / 0.4)) * (Math.min(limit, wanted) - this.#delay);
    const pair = this.#pairAt(now - Math.max(this.#delay, lag));
    const light = this.bright ? 1 : 0.22;
    this.#light += (1 - Math.exp(-seconds / 0.5)) * ((pair ? light : 0) - this.#light);
    if (pair) this.#feel(pair, seconds);
    this.#renderer.draw(pair, this.#viewOf(view));
    this.figures.scriptMs += 0.05 * (performance.now() - begun - this.figures.scriptMs);
  }

  /** Every how many pictures of the display one is drawn. */
  get #pace() {
    return this.sparing && this.figures.software ? SPARING_EVERY : this.#every;
  }

  #feel({ from, to, mix }, seconds) {
    this.felt = {
      valence: from.valence + mix * (to.valence - from.valence),
      arousal: from.arousal + mix * (to.arousal - from.arousal),
    };
    const share = 1 - Math.exp(-seconds / 0.3);
    this.#mist = this.#mist.map((value, k) => value + share * (to.mist[k] - value));
  }

  /** Frames around a time of the server, the older ones forgotten; null when there is none. */
  #pairAt(time) {
    while (this.#frames.length > 2 && this.#frames[1].time <= time) this.#frames.shift();
    const [from, to = from] = this.#frames;
    if (!from) return null;
    // After a pause the next cloud is not a long way to go.
    const span = Math.min(to.time - from.time, 2 * LONGEST_DELAY_SECONDS);
    const mix = span > 0 ? (time - (to.time - span)) / span : 1;
    return { from, to, mix: Math.max(0, Math.min(1, mix)) };
  }

  #viewOf({ yaw, pitch, zoom }) {
    const { density, centre, stage } = this.#place;
    return {
      yaw,
      pitch,
      zoom,
      density,
      centre,
      stage,
      distance: this.camera.distance,
      unit: 0.5 * stage * (3.6 / this.camera.distance) * zoom,
      light: this.#light,
      // A line is a pixel wide; where pixels are large it has to be fainter.
      guides: (this.bright ? 1 : 0.5) * Math.min(1, density),
      mist: this.#mist.map((value) => 0.011 * value * this.#light),
    };
  }

  #resize() {
    this.#dirty = false;
    const box = this.#canvas.getBoundingClientRect();
    const stage = this.#stage.getBoundingClientRect();
    if (!box.width || !box.height) return;
    const sharpest = Math.min(2, devicePixelRatio || 1, Math.sqrt(MOST_PIXELS / (box.width * box.height)));
    const density = sharpest * this.figures.resolution;
    const width = Math.max(16, Math.round(box.width * density));
    const height = Math.max(16, Math.round(box.height * density));
    if (this.#canvas.width !== width || this.#canvas.height !== height) {
      this.#canvas.width = width;
      this.#canvas.height = height;
    }
    this.#renderer.resize(width, height);
    this.#place = {
      density,
      centre: [
        density * (stage.left - box.left + 0.5 * stage.width),
        height - density * (stage.top - box.top + 0.5 * stage.height),
      ],
      // The cloud fills a stage of 16:9 inside the room there is.
      stage: density * Math.max(60, Math.min(stage.height, (stage.width * 9) / 16)),
    };
  }

  #start() {
    try {
      this.#renderer = new CloudRenderer(this.#canvas);
      this.figures.software = this.#renderer.slow;
      if (this.#renderer.slow) {
        this.#ceiling = this.figures.resolution = SOFTWARE_RESOLUTION;
        this.#every = SOFTWARE_EVERY;
      }
      this.#dirty = true;
      this.onproblem(null);
    } catch (error) {
      this.onproblem(error.message);
    }
  }

  /** Watch the pace; a machine that cannot keep up gets fewer pixels, and more again if it can. */
  #measure(interval) {
    // A hidden tab draws once a second or never: that says nothing.
    if (interval > 900) {
      this.#intervals = [];
      return;
    }
    this.#intervals.push(interval);
    const total = this.#intervals.reduce((sum, value) => sum + value, 0);
    if (total < MEASURE_MS || this.#intervals.length < 5) return;
    const sorted = this.#intervals.sort((a, b) => a - b);
    const median = sorted[sorted.length >> 1] / this.#pace;
    this.figures.picturesPerSecond = (1000 * sorted.length) / total;
    this.#intervals = [];
    const { resolution } = this.figures;
    if (median > SLOW_FRAME_MS && resolution > LEAST_RESOLUTION) {
      const share = Math.max(0.6, Math.min(0.9, Math.sqrt(QUICK_FRAME_MS / median)));
      this.#ceiling = Math.max(LEAST_RESOLUTION, share * resolution);
      this.#setResolution(this.#ceiling);
    } else if (median < QUICK_FRAME_MS && resolution < this.#ceiling) {
      this.#setResolution(Math.min(this.#ceiling, 1.25 * resolution));
    } else if (median < QUICK_FRAME_MS && ++this.#quick > 60) {
      // A minute of ease: what was too much then may have been something else.
      this.#ceiling = 1;
      this.#quick = 0;
    }
  }

  #setResolution(share) {
    this.figures.resolution = share;
    this.#quick = 0;
    this.#dirty = true;
  }
}

/** Mean colour of a cloud, times how much it glows: what it lends to the mist behind it. */
function meanColour(bytes, rows) {
  const numbers = new Uint16Array(bytes.buffer, bytes.byteOffset, 10 * rows);
  const sum = [0, 0, 0];
  let weight = 1e-6;
  let glow = 0;
  let count = 0;
  for (let row = 0; row < rows; row += 13) {
    const at = 10 * row;
    const alpha = half(numbers[at + 6]);
    for (let k = 0; k < 3; k += 1) sum[k] += alpha * half(numbers[at + 3 + k]);
    weight += alpha;
    glow += half(numbers[at + 8]);
    count += 1;
  }
  const strength = Math.min(1, glow / count / 0.25);
  return sum.map((value) => (strength * value) / weight);
}
