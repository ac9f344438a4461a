// Controls of the panel, each made from the server's description of an option.
//
// A control is {element, show(value), fault(sentence or null)}; it calls `change(value)`.

const OTHER = "\u0000other";
let count = 0;

/** Make an element with attributes and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value);
    }
  }
  element.append(...children);
  return element;
}

/** An icon of index.html. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Show on a slider how much of it is filled; the style sheet draws it. */
export function fill(input) {
  const share = (input.value - input.min) / (input.max - input.min || 1);
  input.style.setProperty("--filled", `${(100 * share).toFixed(1)}%`);
}

/** The frame of a control: a name, room for the control, a sentence where something is wrong. */
function frame(text, doc, ...children) {
  const id = `control-${++count}`;
  const name = make("label", { class: "name", for: id }, text);
  const fault = make("p", { class: "fault", id: `${id}-fault`, role: "alert", hidden: true });
  const element = make("div", { class: "control", title: doc }, name, ...children, fault);
  return {
    id,
    element,
    name,
    fault(input, sentence) {
      fault.textContent = sentence ?? "";
      fault.hidden = !sentence;
      input.setAttribute("aria-invalid", String(Boolean(sentence)));
      if (sentence) input.setAttribute("aria-describedby", fault.id);
      else input.removeAttribute("aria-describedby");
    },
  };
}

/** A slider for a number; `words` turns the number into what is shown. */
export function slider({ text, doc, low, high, step, words = String, change }) {
  const output = make("output");
  const box = frame(text, doc, output);
  const input = make("input", {
    id: box.id, class: "wide", type: "range", min: low, max: high, step,
  });
  output.setAttribute("for", box.id);
  box.element.insertBefore(input, box.element.lastChild);
  // The value that counts; the slider's range may be narrower.
  let held = false;
  const show = (value) => {
    if (held) return;
    input.value = value;
    output.textContent = words(value);
    input.setAttribute("aria-valuetext", words(value));
    fill(input);
  };
  input.addEventListener("pointerdown", () => (held = true));
  for (const name of ["pointerup", "pointercancel", "blur"]) {
    input.addEventListener(name, () => (held = false));
  }
  input.addEventListener("input", () => {
    const value = Number(input.value);
    output.textContent = words(value);
    input.setAttribute("aria-valuetext", words(value));
    fill(input);
    change(value);
  });
  return { element: box.element, show, fault: (sentence) => box.fault(input, sentence) };
}

/** A field for text, sent when it is left or Enter is pressed; `button` may stand beside it. */
export function textField({ text, doc, placeholder, number = false, button = null, change }) {
  const box = frame(text, doc);
  const input = make("input", {
    id: box.id, class: "field", type: "text", placeholder, autocomplete: "off",
    autocapitalize: "off", spellcheck: "false", inputmode: number ? "numeric" : null,
  });
  const row = make("div", { class: "wide beside" }, input, ...(button ? [button] : []));
  box.element.insertBefore(row, box.element.lastChild);
  let shown = "";
  const send = () => {
    if (input.value === shown) return;
    shown = input.value;
    change(number ? Number(input.value) : input.value.trim());
  };
  input.addEventListener("change", send);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") send();
    if (event.key === "Escape") input.blur();
  });
  return {
    element: box.element,
    show(value) {
      // What was refused stays, so that it can be mended.
      const refused = input.getAttribute("aria-invalid") === "true";
      if (document.activeElement === input || refused) return;
      shown = input.value = String(value);
    },
    fault: (sentence) => box.fault(input, sentence),
  };
}

/**
 * A list to choose from; `choices` are [value, words] pairs.
 *
 * `other` = {words, placeholder}: the last choice, which opens a field for what is in no list.
 */
export function chooser({ text, doc, choices = [], other = null, change }) {
  const box = frame(text, doc);
  const input = make("select", { id: box.id, class: "field wide" });
  const hint = make("p", { class: "hint", id: `${box.id}-hint`, hidden: true });
  const typed = make("input", {
    class: "field wide", type: "text", hidden: true, autocomplete: "off", autocapitalize: "off",
    spellcheck: "false", placeholder: other?.placeholder, "aria-label": `${text}: ${other?.words}`,
  });
  box.element.insertBefore(input, box.element.lastChild);
  if (other) box.element.insertBefore(typed, box.element.lastChild);
  box.element.insertBefore(hint, box.element.lastChild);
  let shown = "";
  let refused = false;
  const offer = (pairs) => {
    const options = pairs.map(([value, words]) => make("option", { value }, words));
    // No port is called so.
    if (other) options.push(make("option", { value: OTHER }, other.words));
    input.replaceChildren(...options);
    show(shown);
  };
  function show(value) {
    shown = value;
    // What is being typed, or was refused, stays.
    if (document.activeElement === typed || (refused && !typed.hidden)) return;
    if (![...input.options].some((option) => option.value === value)) {
      input.insertBefore(make("option", { value }, value), other ? input.lastChild : null);
    }
    input.value = value;
    typed.hidden = true;
  }
  offer(choices);
  input.addEventListener("change", () => {
    typed.hidden = input.value !== OTHER;
    if (typed.hidden) change(input.value);
    else typed.focus();
  });
  typed.addEventListener("change", () => {
    if (typed.value.trim()) change(typed.value.trim());
    else show(shown);
  });
  typed.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") typed.blur();
  });
  return {
    element: box.element,
    offer,
    show,
    /** Say something below the list, or nothing; `closed`: there is nothing to choose now. */
    explain(sentence, closed = false) {
      hint.textContent = sentence ?? "";
      hint.hidden = !sentence;
      input.disabled = closed;
      if (sentence) input.setAttribute("aria-describedby", hint.id);
      else input.removeAttribute("aria-describedby");
    },
    fault(sentence) {
      refused = Boolean(sentence);
      box.fault(typed.hidden ? input : typed, sentence);
    },
  };
}

/** A few choices side by side. */
export function segments({ text, doc, choices, change }) {
  const box = frame(text, doc);
  const group = make("div", { class: "segments wide", role: "radiogroup", "aria-label": text });
  // A label belongs to one field; the group has its name of its own.
  box.name.removeAttribute("for");
  const inputs = choices.map(([value, words]) => {
    const input = make("input", { type: "radio", name: box.id, value, "aria-label": words });
    input.addEventListener("change", () => change(value));
    group.append(make("label", {}, input, make("span", {}, words)));
    return input;
  });
  box.element.insertBefore(group, box.element.lastChild);
  return {
    element: box.element,
    show(value) {
      for (const input of inputs) input.checked = input.value === String(value);
    },
    fault: (sentence) => box.fault(group, sentence),
  };
}

/** Something that is on or off. */
export function toggle({ text, doc, change }) {
  const input = make("input", { type: "checkbox" });
  const label = make("label", { class: "switch", title: doc }, input, text);
  const hint = make("p", { class: "hint", hidden: true });
  const fault = make("p", { class: "fault", role: "alert", hidden: true });
  const element = make("div", { class: "control" }, label, hint, fault);
  input.addEventListener("change", () => change(input.checked));
  return {
    element,
    show(value) {
      input.checked = value;
    },
    explain(sentence, closed = false) {
      hint.textContent = sentence ?? "";
      hint.hidden = !sentence;
      input.disabled = closed;
    },
    fault(sentence) {
      fault.textContent = sentence ?? "";
      fault.hidden = !sentence;
    },
  };
}
