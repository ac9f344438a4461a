// Keyboard shortcuts, and the list of them in the help.

import { make } from "./controls.js";

/** Shortcuts: keys as shown, what they do, the name of the action, the keys of the events. */
const SHORTCUTS = [
  ["Space", "play or pause", "play", [" "]],
  ["S", "stop", "stop", ["s"]],
  ["←↑→↓", "move the feeling", null, []],
  ["Shift ←", "move it farther", null, []],
  ["R", "record", "record", ["r"]],
  ["M", "sound on or off", "sound", ["m"]],
  ["F", "full screen", "full", ["f"]],
  ["H", "hide or show panels", "panels", ["h"]],
  ["P", "panic: end every note", "panic", ["p"]],
  ["+ −", "closer, farther", "closer", ["+", "="]],
  ["0", "camera back home", "home", ["0"]],
  ["?", "this help", "help", ["?"]],
];
const OTHERS = { "-": "farther", "−": "farther" };

/** Fill the help's list. */
export function listShortcuts(home) {
  for (const [keys, text] of SHORTCUTS) {
    home.append(make("dt", {}, make("kbd", {}, keys)), make("dd", {}, text));
  }
}

/** Listen to the keyboard; `actions` by name, `arrow(event)` takes arrow keys. */
export function listen(actions, arrow) {
  const byKey = new Map(SHORTCUTS.flatMap(([, , action, keys]) => keys.map((key) => [key, action])));
  for (const [key, action] of Object.entries(OTHERS)) byKey.set(key, action);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    const at = event.target;
    const typing = at.matches?.("input:not([type=range]):not([type=checkbox]), select, textarea");
    if (typing) return;
    // Arrows belong to the slider or the list that has the focus.
    if (event.key.startsWith("Arrow")) {
      if (!at.matches?.("input, summary, .panel")) arrow(event);
      return;
    }
    // The space bar presses what has the focus; elsewhere it plays.
    if (event.key === " " && at.matches?.("button, summary, input")) return;
    const action = byKey.get(event.key.length === 1 ? event.key.toLowerCase() : event.key);
    if (!action || event.repeat) return;
    event.preventDefault();
    actions[action]();
  });
}
