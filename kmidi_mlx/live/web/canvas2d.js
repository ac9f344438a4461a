// A canvas that is as sharp as the display and knows its size in CSS pixels.

export class SharpCanvas {
  width = 0;
  height = 0;
  context;
  #canvas;
  #changed = true;

  constructor(canvas) {
    this.#canvas = canvas;
    this.context = canvas.getContext("2d");
    new ResizeObserver(() => (this.#changed = true)).observe(canvas);
  }

  /** Follow the element's size; returns whether it has changed, which clears the picture. */
  fit() {
    if (!this.#changed) return false;
    this.#changed = false;
    const density = Math.min(3, devicePixelRatio || 1);
    this.width = this.#canvas.clientWidth;
    this.height = this.#canvas.clientHeight;
    this.#canvas.width = Math.round(this.width * density);
    this.#canvas.height = Math.round(this.height * density);
    this.context.setTransform(density, 0, 0, density, 0, 0);
    return true;
  }
}
