// The camera of the cloud: swings slowly by itself, follows drags, pinches and the wheel.

const HOME = { yaw: -16, pitch: 11 };
const SWING_SECONDS = 40;
const SWING = { yaw: 12, pitch: 5 };
const DISTANCE = 4.6;
const ZOOM_RANGE = [0.55, 5];
const PITCH_RANGE = [-80, 80];
// After a drag the swing waits, then fades in again.
const REST_SECONDS = 6;
const GLIDE_SECONDS = 0.12;
const DEGREES_PER_PIXEL = 0.28;

const limited = (value, [low, high]) => Math.max(low, Math.min(high, value));

export class Camera {
  /** Whether it swings by itself; off for people who prefer reduced motion. */
  swings = true;
  distance = DISTANCE;
  #wanted = { ...HOME, zoom: 1 };
  #now = { ...HOME, zoom: 1 };
  #swing = 1;
  #clock = 0;
  #touched = -Infinity;
  #pointers = new Map();

  /** Take gestures from an element. */
  attach(element) {
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    element.addEventListener("pointermove", (event) => this.#moved(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      element.addEventListener(name, (event) => this.#pointers.delete(event.pointerId));
    }
    element.addEventListener("dblclick", () => this.reset());
    const options = { passive: false };
    element.addEventListener("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
      this.zoomBy(Math.exp(-0.0016 * lines * event.deltaY));
    }, options);
  }

  zoomBy(factor) {
    this.#wanted.zoom = limited(this.#wanted.zoom * factor, ZOOM_RANGE);
  }

  turnBy(yaw, pitch) {
    this.#touched = this.#clock;
    this.#wanted.yaw += yaw;
    this.#wanted.pitch = limited(this.#wanted.pitch + pitch, PITCH_RANGE);
  }

  reset() {
    // The short way round.
    this.#now.yaw = ((this.#now.yaw + 180) % 360 + 360) % 360 - 180;
    this.#wanted = { ...HOME, zoom: 1 };
    this.#touched = -Infinity;
  }

  /** Go on by some seconds; returns yaw and pitch in radians, and zoom. */
  advance(seconds) {
    this.#clock += seconds;
    const resting = this.#clock - this.#touched < REST_SECONDS || !this.swings;
    this.#swing += (1 - Math.exp(-seconds / 1.5)) * ((resting ? 0 : 1) - this.#swing);
    const share = 1 - Math.exp(-seconds / GLIDE_SECONDS);
    for (const key of ["yaw", "pitch", "zoom"]) {
      this.#now[key] += share * (this.#wanted[key] - this.#now[key]);
    }
    const turn = (2 * Math.PI * this.#clock) / SWING_SECONDS;
    const radians = Math.PI / 180;
    return {
      yaw: radians * (this.#now.yaw - this.#swing * SWING.yaw * Math.sin(turn)),
      pitch: radians * (this.#now.pitch + this.#swing * SWING.pitch * Math.sin(0.7 * turn)),
      zoom: this.#now.zoom,
    };
  }

  #moved(event) {
    const last = this.#pointers.get(event.pointerId);
    if (!last) return;
    const place = [event.clientX, event.clientY];
    if (this.#pointers.size === 1) {
      this.turnBy(
        DEGREES_PER_PIXEL * (last[0] - place[0]),
        DEGREES_PER_PIXEL * (place[1] - last[1]),
      );
    } else {
      const other = [...this.#pointers].find(([id]) => id !== event.pointerId)[1];
      const reach = (from) => Math.hypot(from[0] - other[0], from[1] - other[1]);
      if (reach(last) > 8) this.zoomBy(reach(place) / reach(last));
    }
    this.#pointers.set(event.pointerId, place);
  }
}
