// GLSL of the cloud: the light model of the project's deterministic pictures, on the GPU.
//
// Every point is a small Gaussian light with a brighter heart, its glow a wide soft one. Light adds
// up in linear numbers, bright places spill over, and 1 - exp(-x) brings it to the screen.

const CAMERA = `
uniform vec4 uTurn;      // cos and sin of yaw, cos and sin of pitch
uniform vec2 uLens;      // distance, pixels per unit in the middle of the cloud
uniform vec2 uCentre;    // of the stage, pixels from the lower left corner
uniform vec2 uSize;      // of the drawing, pixels

// Pixels from the lower left corner, and how large things look there: 1 in the middle.
vec3 project(vec3 place) {
  vec3 q = vec3(1.75 * place.x, place.y + 0.04, place.z);
  float right = uTurn.x * q.x - uTurn.y * q.z;
  float forward = uTurn.y * q.x + uTurn.x * q.z;
  float up = uTurn.z * q.y - uTurn.w * forward;
  forward = uTurn.w * q.y + uTurn.z * forward;
  float near = uLens.x / max(uLens.x - forward, 0.1);
  return vec3(uCentre + uLens.y * near * vec2(right, up), near);
}
vec4 toScreen(vec2 pixel) { return vec4(2.0 * pixel / uSize - 1.0, 0.0, 1.0); }
`;

const POINTS_IN = `#version 300 es
precision highp float;
layout(location = 0) in vec3 placeA;
layout(location = 1) in vec4 colourA;
layout(location = 2) in vec3 lookA;   // size, glow, depth
layout(location = 3) in vec3 placeB;
layout(location = 4) in vec4 colourB;
layout(location = 5) in vec3 lookB;
uniform float uMix;      // 0: cloud A, 1: cloud B
uniform float uStage;    // height of the stage in pixels, times the zoom
uniform float uFill;     // fewer points are drawn larger
uniform float uLight;
uniform float uLargest;  // diameter that this machine can draw, pixels
${CAMERA}
// Like stars, some points are larger than others.
float star() { return 0.62 + pow(fract(0.6180339887 * float(gl_VertexID)), 3.0); }
// What is far is a little lost in the haze.
float haze(float near) { return clamp(1.0 + 1.1 * (near - 1.0), 0.45, 1.15); }
`;

export const CORE_VERTEX = `${POINTS_IN}
flat out float vReach;   // half the side of the sprite, in radii of the core
flat out vec3 vHeart;
flat out vec3 vCore;
void main() {
  vec4 rgba = mix(colourA, colourB, uMix);
  vec3 look = mix(lookA, lookB, uMix);
  vec3 at = project(mix(placeA, placeB, uMix));
  float glow = look.y;
  vec3 colour = pow(max(rgba.rgb, 0.0), vec3(2.2));
  float fade = uLight * (0.25 + 0.75 * look.z) * rgba.a * haze(at.z);
  float radius = uStage * at.z * uFill * star() * 0.0105 * (0.10 + 0.90 * look.x);
  radius = max(radius, 0.55);
  gl_PointSize = min(2.0 * (2.8 * radius + 1.0), uLargest);
  vReach = 0.5 * gl_PointSize / radius;
  vHeart = 2.6 * fade * (0.25 + glow) * mix(colour, vec3(1.0), 0.6 * pow(min(glow, 1.0), 1.5));
  vCore = 0.75 * fade * (0.35 + glow) * colour;
  gl_Position = toScreen(at.xy);
}`;

export const CORE_FRAGMENT = `#version 300 es
precision highp float;
flat in float vReach;
flat in vec3 vHeart;
flat in vec3 vCore;
out vec4 light;
void main() {
  vec2 place = vReach * (2.0 * gl_PointCoord - 1.0);
  float squared = -0.5 * dot(place, place);
  // The heart's radius is 0.45 of the core's.
  light = vec4(exp(squared) * vCore + exp(squared / 0.2025) * vHeart, 1.0);
}`;

export const HALO_VERTEX = `${POINTS_IN}
flat out float vReach;
flat out vec3 vHalo;
void main() {
  vec4 rgba = mix(colourA, colourB, uMix);
  vec3 look = mix(lookA, lookB, uMix);
  vec3 at = project(mix(placeA, placeB, uMix));
  float radius = max(uStage * at.z * uFill * 0.046 * (0.25 + 0.75 * look.x), 1.0);
  vHalo = 0.075 * uLight * (0.25 + 0.75 * look.z) * rgba.a * haze(at.z) * look.y
    * pow(max(rgba.rgb, 0.0), vec3(2.2));
  gl_PointSize = min(5.2 * radius, uLargest);
  vReach = 0.5 * gl_PointSize / radius;
  gl_Position = toScreen(at.xy);
  // Points that hardly glow cost nothing.
  if (max(vHalo.r, max(vHalo.g, vHalo.b)) < 4e-4) gl_Position = vec4(2.0, 2.0, 0.0, 1.0);
}`;

export const HALO_FRAGMENT = `#version 300 es
precision highp float;
flat in float vReach;
flat in vec3 vHalo;
out vec4 light;
void main() {
  vec2 place = vReach * (2.0 * gl_PointCoord - 1.0);
  light = vec4(exp(-0.5 * dot(place, place)) * vHalo, 1.0);
}`;

// Lines of register and time, a frame at "now": faint, as soft strips one pixel wide.
export const GUIDE_VERTEX = `#version 300 es
precision highp float;
layout(location = 0) in vec3 start;
layout(location = 1) in vec3 end;
layout(location = 2) in vec2 strength;
uniform float uLight;
uniform float uWidth;
${CAMERA}
out float vAcross;
out float vLight;
void main() {
  vec3 a = project(start), b = project(end);
  float along = float(gl_VertexID >> 1);
  vec2 direction = b.xy - a.xy;
  vec2 normal = normalize(vec2(-direction.y, direction.x) + 1e-6);
  vAcross = float(gl_VertexID & 1) * 2.0 - 1.0;
  float near = mix(a.z, b.z, along);
  vLight = uLight * near * near * mix(strength.x, strength.y, along);
  gl_Position = toScreen(mix(a.xy, b.xy, along) + vAcross * uWidth * normal);
}`;

export const GUIDE_FRAGMENT = `#version 300 es
precision highp float;
in float vAcross;
in float vLight;
out vec4 light;
void main() {
  light = vec4(vLight * exp(-5.0 * vAcross * vAcross) * vec3(0.22, 0.29, 0.48), 1.0);
}`;

export const SCREEN_VERTEX = `#version 300 es
out vec2 vPlace;
void main() {
  vPlace = vec2((gl_VertexID << 1) & 2, gl_VertexID & 2);
  gl_Position = vec4(vPlace * 2.0 - 1.0, 0.0, 1.0);
}`;

// What spills over: light above a threshold, out of the sharp and the soft picture.
export const BRIGHT_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D uSharp, uSoft;
uniform vec2 uTexel;     // of the sharp picture
in vec2 vPlace;
out vec4 light;
void main() {
  vec3 sum = vec3(0.0);
  for (int k = 0; k < 4; k++) {
    vec2 step = vec2(k & 1, k >> 1) * 2.0 - 1.0;
    sum += texture(uSharp, vPlace + step * uTexel).rgb;
  }
  light = vec4(max(0.25 * sum + texture(uSoft, vPlace).rgb - 0.25, 0.0), 1.0);
}`;

export const DOWN_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D uSource;
uniform vec2 uTexel;
in vec2 vPlace;
out vec4 light;
void main() {
  vec3 sum = 4.0 * texture(uSource, vPlace).rgb;
  for (int k = 0; k < 4; k++) {
    vec2 step = vec2(k & 1, k >> 1) * 2.0 - 1.0;
    sum += texture(uSource, vPlace + step * uTexel).rgb;
  }
  light = vec4(sum / 8.0, 1.0);
}`;

// The smaller picture, blurred a little more, comes on top of this level's own share.
export const UP_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D uSource;
uniform vec2 uTexel;
uniform float uShare;
in vec2 vPlace;
out vec4 light;
void main() {
  vec3 sum = vec3(0.0);
  for (int k = 0; k < 4; k++) {
    vec2 step = vec2(k & 1, k >> 1) * 2.0 - 1.0;
    sum += 2.0 * texture(uSource, vPlace + step * uTexel).rgb;
    vec2 cross = k < 2 ? vec2(step.x, 0.0) : vec2(0.0, float(k - 2) * 2.0 - 1.0);
    sum += texture(uSource, vPlace + 2.0 * cross * uTexel).rgb;
  }
  light = vec4(uShare * sum / 12.0, 1.0);
}`;

// Deep blue-black that takes a breath of the cloud's own colour in the middle.
export const SKY_FRAGMENT = `#version 300 es
precision highp float;
uniform vec2 uSize, uCentre;
uniform float uStage;
uniform vec3 uMist;
in vec2 vPlace;
out vec4 light;
void main() {
  vec2 offset = 2.0 * (vPlace * uSize - uCentre) / uStage;
  vec3 sky = mix(vec3(0.0030, 0.0040, 0.0105), vec3(0.0006, 0.0008, 0.0026),
    pow(min(abs(offset.y) / 1.4, 1.0), 0.8));
  vec2 wide = offset / vec2(1.35, 0.7);
  light = vec4(sky + uMist * exp(-dot(wide, wide)), 1.0);
}`;

// The only pass over every pixel of the screen, so it is kept short.
export const FINAL_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D uSharp, uSoft;
in vec2 vPlace;
out vec4 colour;
void main() {
  vec3 linear = texelFetch(uSharp, ivec2(gl_FragCoord.xy), 0).rgb + texture(uSoft, vPlace).rgb;
  vec3 a = sqrt(1.0 - exp(-1.8 * linear));
  // The sRGB curve by roots, right to 0.2 %.
  vec3 b = sqrt(a);
  vec3 shown = 0.585122381 * a + 0.783140355 * b - 0.368262736 * sqrt(b);
  // Noise below one step of 8 bits keeps the dark gradients free of bands.
  float noise = fract(52.9829189 * fract(dot(gl_FragCoord.xy, vec2(0.06711056, 0.00583715))));
  colour = vec4(shown + (noise - 0.5) / 255.0, 1.0);
}`;
