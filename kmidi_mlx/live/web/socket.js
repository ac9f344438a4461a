// The connection: commands as promises, streams as events, credits, reconnecting, server time.
//
// Events (CustomEvent): "link" {phase, seconds}, "hello", "state", "stats", "plan", "notice",
// "cloud" and "sound" {header, buffer}. Phases of the link: "opening", "open", "waiting" (with the
// seconds until the next try), "refused" (the server is there but wants its key).

const STREAMS = ["state", "stats", "plan", "cloud", "sound"];
const CLOUD_CREDITS = 3;
// Sound comes in blocks of 20 ms: this many may be under way, given back some at a time.
const SOUND_CREDITS = 16;
const SOUND_CREDITS_BACK = 4;
const FIRST_WAIT_SECONDS = 0.5;
const LONGEST_WAIT_SECONDS = 8;
const REPLY_SECONDS = 15;
const HEADER_BYTES = 40;
// "KMC1" and "KMS1", read as little-endian numbers.
const CLOUD_MAGIC = 0x31434d4b;
const SOUND_MAGIC = 0x31534d4b;

/** Server time in seconds, estimated from pings: the one with the shortest way is trusted most. */
export class ServerClock {
  #samples = [];
  #offset = null;

  /** Take in a ping that was sent and answered at these times of performance.now() / 1000. */
  add(sent, received, serverTime) {
    this.#samples.push({ trip: received - sent, offset: serverTime - 0.5 * (sent + received) });
    if (this.#samples.length > 12) this.#samples.shift();
    const best = this.#samples.reduce((a, b) => (b.trip < a.trip ? b : a));
    // A change of less than half the way is within the estimate's own error.
    if (this.#offset === null || Math.abs(best.offset - this.#offset) > 0.5 * best.trip) {
      this.#offset = best.offset;
    }
  }

  /** A first idea before any ping is answered: the message has taken no time. */
  guess(serverTime) {
    this.#samples = [];
    this.#offset = serverTime - performance.now() / 1000;
  }

  now() {
    return performance.now() / 1000 + (this.#offset ?? 0);
  }
}

/** Read the 40-byte header of a binary frame; null for what is not one. */
export function readHeader(buffer) {
  if (buffer.byteLength < HEADER_BYTES) return null;
  const view = new DataView(buffer);
  const magic = view.getUint32(0, true);
  if (magic !== CLOUD_MAGIC && magic !== SOUND_MAGIC) return null;
  const header = {
    kind: magic === CLOUD_MAGIC ? "cloud" : "sound",
    start: view.getUint16(4, true),
    columns: view.getUint16(6, true),
    sequence: view.getUint32(8, true),
    rows: view.getUint32(12, true),
    time: view.getFloat64(16, true),
    first: view.getFloat32(24, true),
    second: view.getFloat32(28, true),
  };
  const bytes = header.start + 2 * header.rows * header.columns;
  return buffer.byteLength >= bytes ? header : null;
}

export class Link extends EventTarget {
  clock = new ServerClock();
  #url;
  #socket = null;
  #lastId = 0;
  #waiting = new Map();
  #wait = FIRST_WAIT_SECONDS;
  #retry = 0;
  #pinger = 0;
  #wanted = new Set(STREAMS);
  #cloudRate = null;
  #heard = 0;

  constructor(url) {
    super();
    this.#url = url;
    // A phone that wakes up should not sit out the rest of a long wait.
    addEventListener("online", () => this.reconnect());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.reconnect();
    });
  }

  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /** Connect now, unless that is done or under way. */
  reconnect() {
    if (this.#socket && this.#socket.readyState <= WebSocket.OPEN) return;
    clearTimeout(this.#retry);
    this.#emit("link", { phase: "opening" });
    const socket = new WebSocket(this.#url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.#opened();
    socket.onmessage = (event) => this.#received(event.data);
    socket.onclose = () => this.#closed(socket);
    this.#socket = socket;
  }

  /** Send a command; resolves to its result, rejects with the server's sentence. */
  command(name, args = {}) {
    if (!this.open) return Promise.reject(new Error("There is no connection to the player."));
    const id = ++this.#lastId;
    const reply = new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        reject(new Error("The player did not answer in time."));
      }, 1000 * REPLY_SECONDS);
      this.#waiting.set(id, { resolve, reject, timer });
    });
    this.#send({ v: 1, id, command: name, arguments: args });
    return reply;
  }

  /** Ask for a stream, or no longer; kept over reconnections. */
  want(stream, wanted) {
    if (this.#wanted.has(stream) === wanted) return;
    if (wanted) this.#wanted.add(stream);
    else this.#wanted.delete(stream);
    if (this.open) this.#subscribe();
  }

  /** Ask for at most this many clouds a second; null: as many as there are. */
  limitClouds(rate) {
    this.#cloudRate = rate;
    if (this.open) this.#subscribe();
  }

  #send(message) {
    this.#socket.send(JSON.stringify(message));
  }

  #opened() {
    this.#wait = FIRST_WAIT_SECONDS;
    this.#heard = 0;
    this.#subscribe();
    this.#credit("cloud", CLOUD_CREDITS);
    this.#credit("sound", SOUND_CREDITS);
    let pings = 0;
    const ping = () => {
      this.#ping();
      this.#pinger = setTimeout(ping, ++pings < 6 ? 250 : 3000);
    };
    ping();
    this.#emit("link", { phase: "open" });
  }

  #subscribe() {
    const rate = this.#cloudRate === null ? {} : { cloud_rate: this.#cloudRate };
    this.command("subscribe", { streams: [...this.#wanted], ...rate }).catch((error) =>
      this.#emit("notice", { level: "error", text: error.message }),
    );
  }

  #giveBack(kind) {
    if (kind === "cloud") this.#credit("cloud", 1);
    else if (++this.#heard % SOUND_CREDITS_BACK === 0) this.#credit("sound", SOUND_CREDITS_BACK);
  }

  #credit(stream, count) {
    if (this.open) this.#send({ v: 1, command: "credit", arguments: { stream, count } });
  }

  async #ping() {
    const sent = performance.now() / 1000;
    try {
      const { time } = await this.command("ping");
      this.clock.add(sent, performance.now() / 1000, time);
    } catch {
      // The connection has gone; its end is told elsewhere.
    }
  }

  #received(data) {
    if (typeof data !== "string") {
      const header = readHeader(data);
      if (!header) return;
      this.#giveBack(header.kind);
      this.#emit(header.kind, { header, buffer: data });
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "reply") {
      this.#replied(message);
    } else {
      if (message.type === "hello") this.clock.guess(message.time);
      this.#emit(message.type, message);
    }
  }

  #replied({ id, ok, result, error }) {
    const waiting = this.#waiting.get(id);
    if (!waiting) return;
    this.#waiting.delete(id);
    clearTimeout(waiting.timer);
    if (ok) waiting.resolve(result);
    else waiting.reject(new Error(error));
  }

  #closed(socket) {
    if (socket !== this.#socket) return;
    clearTimeout(this.#pinger);
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(new Error("The connection to the player was lost."));
    }
    this.#waiting.clear();
    // Spread out, so that many pages do not come back in the same moment.
    const seconds = this.#wait * (0.8 + 0.4 * Math.random());
    this.#wait = Math.min(LONGEST_WAIT_SECONDS, 1.7 * this.#wait);
    this.#retry = setTimeout(() => this.reconnect(), 1000 * seconds);
    this.#emit("link", { phase: "waiting", seconds });
    this.#ask();
  }

  /** Find out whether the server is there but does not know this page any more. */
  async #ask() {
    try {
      const [health, page] = await Promise.all([fetch("health"), fetch("./")]);
      if (health.ok && [401, 403].includes(page.status) && !this.open) {
        this.#emit("link", { phase: "refused" });
      }
    } catch {
      // Nobody there: that is told already.
    }
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
