// Sound in the page: hands the sound stream to an AudioWorklet; volume, mute, how late it is heard.
//
// A browser lets a page make sound only after a gesture, so `turnOn` has to be called from one.

const GLIDE_SECONDS = 0.02;

export class Sound extends EventTarget {
  /** What the worklet said last; zeros before it has said anything. */
  report = { heardTime: 0, bufferedSeconds: 0, underruns: 0, gaps: 0, blocks: 0, playing: false };
  #link;
  #context = null;
  #node = null;
  #gain = null;
  #volume = 0.8;
  #muted = false;
  #starting = null;
  // Smoothed, because reports are jittery and the picture follows it.
  #lag = null;

  constructor(link) {
    super();
    this.#link = link;
    link.want("sound", false);
    link.addEventListener("sound", ({ detail }) => this.#take(detail));
  }

  get on() {
    return this.#context?.state === "running" && this.#node !== null;
  }

  /** Whether this browser lets this page make sound at all. */
  get possible() {
    // Browsers offer worklets only to pages from this machine or over https.
    return Boolean(window.AudioContext && window.AudioWorkletNode);
  }

  get muted() {
    return this.#muted;
  }

  get volume() {
    return this.#volume;
  }

  /** Seconds by which what is heard is behind what the server plays; 0 while nothing is heard. */
  get lagSeconds() {
    return this.on && this.report.playing && this.#lag !== null ? this.#lag : 0;
  }

  /** Start; call it from a gesture. Rejects with a sentence where the browser cannot. */
  async turnOn() {
    this.#starting ??= this.#build();
    try {
      await this.#starting;
    } catch (error) {
      this.#starting = null;
      throw new Error(`Sound cannot be played in this page: ${error.message}.`);
    }
    await this.#context.resume();
    this.#node.port.postMessage({ flush: true });
    this.#link.want("sound", true);
    this.#changed();
  }

  async turnOff() {
    this.#link.want("sound", false);
    this.#lag = null;
    await this.#context?.suspend();
    this.#changed();
  }

  setVolume(volume) {
    this.#volume = Math.max(0, Math.min(1, volume));
    this.#applyGain();
  }

  setMuted(muted) {
    this.#muted = muted;
    this.#applyGain();
  }

  /** Forget what is buffered, as after a stop. */
  flush() {
    this.#node?.port.postMessage({ flush: true });
  }

  async #build() {
    if (!this.possible) {
      throw new Error(
        window.isSecureContext
          ? "this browser has no AudioWorklet"
          : "browsers allow it only on the machine that plays; choose a sound card of the player under Sound",
      );
    }
    const context = new AudioContext({ sampleRate: 44100, latencyHint: "interactive" });
    await context.audioWorklet.addModule(new URL("sound-worklet.js", import.meta.url));
    this.#node = new AudioWorkletNode(context, "stream-player", {
      numberOfInputs: 0,
      outputChannelCount: [2],
    });
    this.#node.port.onmessage = ({ data }) => this.#reported(data);
    this.#gain = new GainNode(context, { gain: 0 });
    this.#node.connect(this.#gain).connect(context.destination);
    context.onstatechange = () => this.#changed();
    this.#context = context;
    this.#applyGain();
  }

  #take({ header, buffer }) {
    if (!this.on) return;
    const block = buffer.slice(header.start, header.start + 4 * header.rows);
    const { sequence, time, first: sampleRate } = header;
    this.#node.port.postMessage({ block, sequence, time, sampleRate }, [block]);
  }

  #reported(report) {
    this.report = report;
    if (!report.playing) return;
    const output = this.#context.outputLatency || this.#context.baseLatency || 0;
    const lag = this.#link.clock.now() - report.heardTime + output;
    const known = this.#lag !== null && Math.abs(lag - this.#lag) < 0.25;
    this.#lag = Math.max(0, Math.min(0.6, known ? this.#lag + 0.2 * (lag - this.#lag) : lag));
  }

  #applyGain() {
    // Loudness is heard in ratios: the square makes the slider feel even.
    const gain = this.#muted ? 0 : this.#volume ** 2;
    this.#gain?.gain.setTargetAtTime(gain, this.#context.currentTime, GLIDE_SECONDS);
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
