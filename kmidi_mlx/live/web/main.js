// Puts the page together: what comes from the link goes to the parts, what people do to the link.

import { CloudView } from "./cloud.js";
import { fill, make } from "./controls.js";
import { listen, listShortcuts } from "./keys.js";
import { Notices, Veil } from "./notices.js";
import { EmotionPad, WORDS } from "./pad.js";
import { Panel } from "./panel.js";
import { PianoRoll } from "./roll.js";
import { Link } from "./socket.js";
import { Sound } from "./sound.js";
import { Strip } from "./strip.js";

const IDLE_SECONDS = 3;
const CALM_CLOUDS = 4;
// Shown by the veil and the strip.
const QUIET_TOPICS = ["loading", "fps"];
const NO_LINK = {
  opening: ["Connecting", "Looking for the player on this address."],
  refused: ["This page needs its key", "kmidi was started anew. Open the address that it shows; it ends with ?token=…"],
};

const by = (id) => document.getElementById(id);
const body = document.body;
const scheme = location.protocol === "https:" ? "wss" : "ws";
const link = new Link(`${scheme}://${location.host}/ws`);
const sound = new Sound(link);
const cloud = new CloudView(by("cloud"), by("stage"));
const roll = new PianoRoll(by("roll"));
const pad = new EmotionPad(by("pad"));
const panel = new Panel(by("groups"), link);
const notices = new Notices(by("notices"));
const veil = new Veil(by("veil"));
const strip = new Strip();
const memory = remembered();
let state = null;
let stats = {};
let phase = { phase: "opening" };
// A person who has turned sound off does not want it back with the next Play.
let wantsSound = memory.sound !== "off";
const recent = { underruns: 0, gaps: 0 };
const before = {};

/** Small settings of this browser; nothing where it keeps none. */
function remembered() {
  try {
    localStorage.setItem("kmidi.test", "1");
    localStorage.removeItem("kmidi.test");
    return localStorage;
  } catch {
    return {};
  }
}

/** Send a command; what is refused is shown. */
async function tell(command, args) {
  try {
    return await link.command(command, args);
  } catch (error) {
    notices.pass("error", error.message);
    return null;
  }
}

async function turnSound(on) {
  wantsSound = on;
  memory.sound = on ? "on" : "off";
  try {
    await (on ? sound.turnOn() : sound.turnOff());
  } catch (error) {
    wantsSound = false;
    notices.pass("error", error.message);
  }
  showSound();
}

const actions = {
  play() {
    const playing = state?.transport === "playing";
    // Browsers allow sound in the moment of a gesture only.
    if (!playing && offersSound()) turnSound(true);
    tell("transport", { action: playing ? "pause" : "play" });
  },
  stop() {
    tell("transport", { action: "stop" });
    sound.flush();
  },
  panic() {
    tell("transport", { action: "panic" });
    sound.flush();
  },
  async record() {
    const action = state?.recording ? "stop" : "start";
    const result = await tell("record", { action });
    if (result?.files?.length) {
      panel.addWritten(result.files);
      // All of a take are in one folder.
      const [folder] = result.files[0].split("/");
      const names = result.files.map((file) => file.split("/").at(-1));
      notices.pass("info", `Recorded ${folder}: ${names.join(", ")}.`);
    }
  },
  sound: () => turnSound(!sound.on),
  full() {
    const full = Boolean(document.fullscreenElement) || body.dataset.panels === "off";
    showPanels(full);
    if (full && document.fullscreenElement) document.exitFullscreen();
    // Phones without full screen still get the cloud alone.
    else if (!full) document.documentElement.requestFullscreen?.().catch(() => {});
  },
  panels: () => showPanels(body.dataset.panels === "off"),
  help: () => by("help").showModal(),
  closer: () => cloud.camera.zoomBy(1.2),
  farther: () => cloud.camera.zoomBy(1 / 1.2),
  home: () => cloud.camera.reset(),
};

function showPanels(shown) {
  body.dataset.panels = shown ? "on" : "off";
  by("panels").setAttribute("aria-pressed", String(shown));
  by("full").setAttribute("aria-pressed", String(!shown));
}

function setIcon(button, name) {
  button.querySelector("use").setAttribute("href", `#i-${name}`);
}

function showSound() {
  by("sound").setAttribute("aria-pressed", String(sound.on));
  setIcon(by("sound"), sound.on ? "sound" : "silent");
  by("wake").hidden = !(link.open && state?.transport === "playing" && offersSound());
}

/** Whether this page should play: nobody hears the music yet, and it can. */
function offersSound() {
  const elsewhere = Boolean(state?.sound.device) || state?.sound.browser === false;
  return wantsSound && !elsewhere && !sound.on && sound.possible;
}

function showTransport() {
  const playing = state.transport === "playing";
  setIcon(by("play"), playing ? "pause" : "play");
  by("play").lastChild.textContent = playing ? "Pause" : state.transport === "paused" ? "Go on" : "Play";
  const recording = Boolean(state.recording);
  by("record").setAttribute("aria-pressed", String(recording));
  by("record").lastChild.textContent = recording ? "Stop recording" : "Record";
  setIcon(by("record"), recording ? "stop" : "record");
  roll.setPlaying(playing);
}

function showMood() {
  const word = pad.nearest();
  by("mood-word").textContent = word;
  by("mood-numbers").textContent = `valence ${pad.valence.toFixed(2)}, arousal ${pad.arousal.toFixed(2)}`;
  for (const chip of by("presets").children) {
    chip.setAttribute("aria-pressed", String(chip.textContent === word));
  }
}

/** Say what is between the person and the music: no link, no models yet, or nothing. */
function showPhase() {
  body.dataset.link = phase.phase;
  const loading = state?.notices?.find(({ topic }) => topic === "loading");
  const open = phase.phase === "open";
  cloud.bright = open;
  by("link").textContent = !open ? "not connected" : loading ? "loading" : "connected";
  for (const id of ["panel", "dock"]) by(id).inert = !open;
  if (phase.phase === "waiting") {
    const seconds = Math.max(0, Math.ceil(phase.until - performance.now() / 1000));
    const when = seconds ? `Trying again in ${seconds} s.` : "Trying again.";
    veil.show("No connection to the player", when, { retry: true });
  } else if (!open) {
    // A page that has lost its player keeps saying so while it tries.
    if (!(phase.phase === "opening" && state)) veil.show(...NO_LINK[phase.phase], { busy: phase.phase === "opening" });
  } else if (loading) {
    const then = state.transport === "playing" ? "The music begins by itself as soon as they are warm." : "Press Play as soon as they are warm.";
    veil.show("Loading the models", then, { busy: true });
  } else if (state) {
    veil.hide();
  }
  showSound();
}

link.addEventListener("link", ({ detail }) => {
  phase = { ...detail, until: performance.now() / 1000 + (detail.seconds ?? 0) };
  showPhase();
});
link.addEventListener("hello", async () => {
  cloud.clear();
  roll.clear();
  const description = await tell("describe");
  if (!description) return;
  pad.setLabels(description.labels);
  panel.build(description);
  showPresets(description.labels);
});
link.addEventListener("state", ({ detail }) => {
  state = detail;
  pad.show(state.music.valence, state.music.arousal);
  panel.show(state);
  notices.standing(state.notices.filter(({ topic }) => !QUIET_TOPICS.includes(topic)));
  if (state.cloud.source === "off") cloud.clear();
  showTransport();
  showPhase();
});
link.addEventListener("stats", ({ detail }) => (stats = detail));
link.addEventListener("plan", ({ detail }) => roll.take(detail, link.clock.now()));
link.addEventListener("notice", ({ detail }) => notices.pass(detail.level, detail.text));
link.addEventListener("cloud", ({ detail }) => cloud.push(detail, link.clock.now()));
sound.addEventListener("change", showSound);
pad.addEventListener("change", ({ detail }) => tell("update_emotion", detail));
pad.addEventListener("move", showMood);
cloud.onproblem = (text) => text && notices.pass("error", text);
if (!cloud.drawing) notices.pass("error", "This browser cannot draw the cloud: it needs WebGL2.");

function showPresets(labels) {
  const chips = WORDS.filter((name) => labels[name]).map((name) => {
    const chip = make("button", { class: "chip", type: "button", "aria-pressed": "false" }, name);
    chip.addEventListener("click", () => pad.choose(...labels[name]));
    return chip;
  });
  by("presets").replaceChildren(...chips);
  showMood();
}

for (const name of ["play", "stop", "panic", "record", "sound", "panels", "full"]) {
  by(name).addEventListener("click", () => actions[name]());
}
for (const name of ["help-open", "help-head"]) by(name).addEventListener("click", actions.help);
by("wake").addEventListener("click", () => turnSound(true));
by("veil-retry").addEventListener("click", () => link.reconnect());
by("volume").addEventListener("input", ({ target }) => {
  sound.setVolume(Number(target.value));
  memory.volume = target.value;
  fill(target);
});
by("volume").value = memory.volume ?? 0.8;
sound.setVolume(Number(by("volume").value));
fill(by("volume"));
listShortcuts(by("keys"));
listen(actions, (event) => pad.key(event));
document.addEventListener("fullscreenchange", () => {
  if (!document.fullscreenElement) showPanels(true);
});

// Over the bare cloud everything fades while nobody moves.
let idleTimer = 0;
for (const name of ["pointermove", "pointerdown", "keydown"]) {
  addEventListener(name, () => {
    body.dataset.idle = "no";
    clearTimeout(idleTimer);
    idleTimer = setTimeout(() => (body.dataset.idle = "yes"), 1000 * IDLE_SECONDS);
  });
}

// Slow fades need few clouds.
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const limitClouds = () => link.limitClouds(calm.matches ? CALM_CLOUDS : null);
calm.addEventListener("change", limitClouds);
limitClouds();

// The strip stands under everything, or at the end of the panel where the page is narrow.
const narrow = matchMedia("(max-width: 759px)");
const placeStrip = () => by(narrow.matches ? "strip-narrow" : "strip-wide").append(strip.element);
narrow.addEventListener("change", placeStrip);
placeStrip();

setInterval(() => {
  if (phase.phase === "waiting") showPhase();
  const { bufferedSeconds, underruns } = sound.report;
  const counts = { underruns, gaps: stats.underruns ?? 0 };
  for (const [name, count] of Object.entries(counts)) {
    recent[name] = 0.9 * recent[name] + Math.max(0, count - (before[name] ?? count));
    before[name] = count;
  }
  const loading = state?.notices.some(({ topic }) => topic === "loading");
  const playing = state?.transport === "playing" && !loading;
  // A processor that draws takes its time from the music.
  cloud.sparing = playing && stats.lookahead_bars < 0.6;
  const page = {
    ...cloud.figures,
    playing,
    soundOn: sound.on,
    bufferedSeconds,
    underruns,
    recentUnderruns: Math.round(recent.underruns),
    recentGaps: Math.round(recent.gaps),
  };
  if (link.open) strip.show(stats, page);
}, 500);

function frame(moment) {
  const now = link.clock.now();
  const lag = sound.lagSeconds;
  cloud.draw(now, lag, moment);
  roll.draw(now, lag, cloud.felt?.valence ?? pad.valence);
  pad.feel(cloud.felt);
  pad.draw(performance.now() / 1000);
  requestAnimationFrame(frame);
}

requestAnimationFrame(frame);
link.reconnect();
// For tests and for curious people in the console.
window.kmidi = { link, sound, cloud, pad, roll };
