// Plays the sound stream on the audio thread: a ring of samples, read a little faster or slower.
//
// Messages in: {block: ArrayBuffer of interleaved int16, sequence, time, sampleRate}, {flush: true}.
// Messages out, 5 a second: {heardTime, bufferedSeconds, underruns, gaps, blocks, playing}.

const RING_FRAMES = 1 << 16;
const TARGET_SECONDS = 0.135;
// A page that is often late gets a longer buffer, which shrinks again by itself.
const MOST_TARGET_SECONDS = 0.27;
const TARGET_GROWTH = 1.25;
const TARGET_HALF_LIFE_SECONDS = 60;
// Beyond this the sound would lag behind the picture: skip ahead.
const MOST_SECONDS = 0.45;
const FADE_SECONDS = 0.006;
// Playing up to 0.4 % too fast or slow keeps the buffer filled; nobody hears that on a piano.
const MOST_BEND = 0.004;

class StreamPlayer extends AudioWorkletProcessor {
  #left = new Float32Array(RING_FRAMES);
  #right = new Float32Array(RING_FRAMES);
  // Frames since the beginning; an index into the ring is taken modulo its length.
  #written = 0;
  #read = 0;
  #rate = 44100;
  #playing = false;
  #gain = 0;
  #target = TARGET_SECONDS;
  #fill = TARGET_SECONDS;
  #lastSequence = null;
  #lastTime = 0;
  #dryAt = -Infinity;
  // Where to go on once the sound has faded out: "newest", "empty", or null for no jump.
  #jump = null;
  #counts = { underruns: 0, gaps: 0, blocks: 0 };
  #untilReport = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => (data.flush ? this.#flush() : this.#take(data));
  }

  #flush() {
    this.#jump = "empty";
    this.#lastSequence = null;
    this.#dryAt = -Infinity;
  }

  #take({ block, sequence, time, sampleRate: rate }) {
    const samples = new Int16Array(block);
    const frames = samples.length >> 1;
    if (frames >= RING_FRAMES >> 1) return;
    this.#rate = rate;
    // A stream that has ended leaves the buffer dry too; only one that goes on was late.
    if (currentTime - this.#dryAt < 1) {
      this.#counts.underruns += 1;
      this.#target = Math.min(MOST_TARGET_SECONDS, TARGET_GROWTH * this.#target);
    }
    this.#dryAt = -Infinity;
    const fade = Math.round(FADE_SECONDS * rate);
    const broken = this.#lastSequence !== null && sequence !== this.#lastSequence + 1;
    if (broken) {
      this.#counts.gaps += 1;
      this.#fadeTail(fade);
    }
    for (let i = 0; i < frames; i += 1) {
      const gain = broken && i < fade ? i / fade : 1;
      const at = (this.#written + i) % RING_FRAMES;
      this.#left[at] = (gain * samples[2 * i]) / 32768;
      this.#right[at] = (gain * samples[2 * i + 1]) / 32768;
    }
    this.#written += frames;
    this.#lastSequence = sequence;
    this.#lastTime = time + frames / rate;
    this.#counts.blocks += 1;
    // What would come too late is left out.
    if (this.#written - this.#read > MOST_SECONDS * rate) this.#jump ??= "newest";
  }

  /** Let what is written but not heard yet end in silence. */
  #fadeTail(frames) {
    const count = Math.min(frames, Math.floor(this.#written - this.#read));
    for (let i = 1; i <= count; i += 1) {
      const at = (this.#written - i) % RING_FRAMES;
      this.#left[at] *= (i - 1) / count;
      this.#right[at] *= (i - 1) / count;
    }
  }

  process(_inputs, [output]) {
    const [left, right = left] = output;
    const buffered = (this.#written - this.#read) / this.#rate;
    const shrink = 0.5 ** (left.length / sampleRate / TARGET_HALF_LIFE_SECONDS);
    this.#target = TARGET_SECONDS + shrink * (this.#target - TARGET_SECONDS);
    if (!this.#playing && buffered >= this.#target) {
      this.#playing = true;
      this.#fill = buffered;
    }
    this.#fill += 0.01 * (buffered - this.#fill);
    const error = (this.#fill - this.#target) / this.#target;
    const bend = Math.max(-MOST_BEND, Math.min(MOST_BEND, 0.01 * error));
    const step = (this.#rate / sampleRate) * (1 + bend);
    const slope = 1 / (FADE_SECONDS * sampleRate);
    const fadeFrames = FADE_SECONDS * this.#rate;
    for (let i = 0; i < left.length; i += 1) {
      const ahead = this.#written - this.#read;
      // The end of the buffer is known before it comes: fade out towards it.
      const heard = this.#playing && !this.#jump;
      const wanted = heard ? Math.min(1, Math.max(0, (ahead - 4) / fadeFrames)) : 0;
      this.#gain += Math.max(-slope, Math.min(slope, wanted - this.#gain));
      if (this.#jump && (this.#gain === 0 || !this.#playing)) this.#land();
      else if (this.#playing && ahead > 4) {
        left[i] = this.#gain * this.#sample(this.#left);
        right[i] = this.#gain * this.#sample(this.#right);
        this.#read += step;
      } else if (this.#playing) {
        this.#playing = false;
        this.#gain = 0;
        this.#dryAt = currentTime;
      }
    }
    this.#report(left.length);
    return true;
  }

  #land() {
    const keep = this.#jump === "newest" ? this.#target * this.#rate : 0;
    this.#read = Math.max(this.#read, this.#written - keep);
    this.#playing &&= keep > 0;
    this.#jump = null;
  }

  /** Catmull-Rom interpolation between the four frames around the reading place. */
  #sample(ring) {
    const base = Math.floor(this.#read);
    const t = this.#read - base;
    const a = ring[(base + RING_FRAMES - 1) % RING_FRAMES];
    const b = ring[base % RING_FRAMES];
    const c = ring[(base + 1) % RING_FRAMES];
    const d = ring[(base + 2) % RING_FRAMES];
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
  }

  #report(frames) {
    this.#untilReport -= frames;
    if (this.#untilReport > 0) return;
    this.#untilReport = 0.2 * sampleRate;
    const bufferedSeconds = (this.#written - this.#read) / this.#rate;
    this.port.postMessage({
      heardTime: this.#lastTime - bufferedSeconds,
      bufferedSeconds,
      playing: this.#playing,
      ...this.#counts,
    });
  }
}

registerProcessor("stream-player", StreamPlayer);
