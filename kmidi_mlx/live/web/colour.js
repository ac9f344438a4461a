// Colours of emotion, the same as the cloud's: hue follows valence from blue over violet to red.

/** Red, green and blue in 0-255 of a hue in turns, saturation and value in [0, 1]. */
export function rgbOf(hue, saturation, value) {
  return [0, 4, 2].map((shift) => {
    const sector = (((6 * hue + shift) % 6) + 6) % 6;
    const full = Math.max(0, Math.min(1, Math.abs(sector - 3) - 1));
    return Math.round(255 * value * (1 - saturation * (1 - full)));
  });
}

/** Hue in turns of a valence in [-1, 1]. */
export function hueOf(valence) {
  return 0.575 + 0.475 * 0.5 * (valence + 1);
}

export function css([red, green, blue], alpha = 1) {
  return `rgb(${red} ${green} ${blue} / ${alpha})`;
}
