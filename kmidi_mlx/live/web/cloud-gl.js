// WebGL2 resources and passes of the cloud; everything here is made anew after a lost context.
//
// Passes of a frame: wide glows into a picture of a quarter of the size (they have no detail), sharp
// points and guide lines into a full one, what is bright blurred over smaller ones and added to the
// first, then both to the screen. All pictures hold linear light in half floats.

import * as glsl from "./cloud-shaders.js";

const ROW_BYTES = 20;
const GUIDE_FLOATS = 8;
const MOST_SPILL_LEVELS = 4;
// A large picture has one level more than one of half its height, so that both spill alike.
const LOWEST_SPILL = 90;
// What each blurred level gives to the next larger one, from the narrowest to the widest.
const SPILL_SHARES = [0.24, 0.6, 0.5];

export class CloudRenderer {
  #gl;
  #programs = {};
  #format;
  #largest;
  #slots;
  #arrays;
  #guides;
  #targets = null;
  #size = [0, 0];

  /** Throws an Error with a sentence where there is no WebGL2. */
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", {
      alpha: false,
      antialias: false,
      depth: false,
      powerPreference: "high-performance",
    });
    if (!gl) throw new Error("This browser has no WebGL2, so the cloud cannot be drawn here.");
    this.#gl = gl;
    const floats = gl.getExtension("EXT_color_buffer_float");
    const halves = floats || gl.getExtension("EXT_color_buffer_half_float");
    this.#format = halves ? [gl.RGBA16F, gl.HALF_FLOAT] : [gl.RGBA8, gl.UNSIGNED_BYTE];
    this.#largest = gl.getParameter(gl.ALIASED_POINT_SIZE_RANGE)[1];
    this.#programs = {
      core: this.#program(glsl.CORE_VERTEX, glsl.CORE_FRAGMENT),
      halo: this.#program(glsl.HALO_VERTEX, glsl.HALO_FRAGMENT),
      guide: this.#program(glsl.GUIDE_VERTEX, glsl.GUIDE_FRAGMENT),
      bright: this.#program(glsl.SCREEN_VERTEX, glsl.BRIGHT_FRAGMENT),
      down: this.#program(glsl.SCREEN_VERTEX, glsl.DOWN_FRAGMENT),
      up: this.#program(glsl.SCREEN_VERTEX, glsl.UP_FRAGMENT),
      sky: this.#program(glsl.SCREEN_VERTEX, glsl.SKY_FRAGMENT),
      final: this.#program(glsl.SCREEN_VERTEX, glsl.FINAL_FRAGMENT),
    };
    this.#slots = [0, 1].map(() => ({ buffer: gl.createBuffer(), frame: null }));
    // One vertex array for each order of the two clouds, so that nothing is bound anew per frame.
    this.#arrays = [[0, 1], [1, 0], [0, 0], [1, 1]].map(([a, b]) => this.#vertexArray(a, b));
    this.#guides = this.#guideArray();
    gl.blendFunc(gl.ONE, gl.ONE);
    gl.disable(gl.DEPTH_TEST);
  }

  /** The canvas as a target. */
  get #screen() {
    return { framebuffer: null, width: this.#size[0], height: this.#size[1] };
  }

  /** Whether a processor does the work of graphics: such machines start with fewer pixels. */
  get slow() {
    const about = this.#gl.getExtension("WEBGL_debug_renderer_info");
    const name = about ? this.#gl.getParameter(about.UNMASKED_RENDERER_WEBGL) : "";
    return /swiftshader|llvmpipe|software|basic render/i.test(name);
  }

  get lost() {
    return this.#gl.isContextLost();
  }

  /** Set the size of the drawing in pixels. */
  resize(width, height) {
    if (width === this.#size[0] && height === this.#size[1]) return;
    this.#size = [width, height];
    for (const target of Object.values(this.#targets ?? {}).flat()) this.#discard(target);
    const fitting = Math.round(Math.log2(Math.max(1, height / LOWEST_SPILL))) + 1;
    const levels = Math.max(2, Math.min(MOST_SPILL_LEVELS, fitting));
    const quarter = (length, power) => Math.max(1, Math.ceil(length / 2 ** power));
    const spill = Array.from({ length: levels }, (_, level) =>
      this.#target(quarter(width, 2 + level), quarter(height, 2 + level)),
    );
    this.#targets = {
      sharp: this.#target(width, height),
      soft: this.#target(quarter(width, 2), quarter(height, 2)),
      spill,
    };
  }

  /**
   * Draw one picture.
   *
   * pair: {from, to, mix} of frames {rows, bytes}, or null for an empty stage.
   * view: {yaw, pitch (radians), distance, unit, centre [x, y], stage, light, mist [r, g, b]} in
   * pixels of the drawing, y upwards.
   */
  draw(pair, view) {
    const gl = this.#gl;
    const { sharp, soft, spill } = this.#targets;
    gl.disable(gl.BLEND);
    this.#sky(soft, view);
    gl.enable(gl.BLEND);
    if (pair) this.#points("halo", pair, view, 0.25);
    this.#clear(sharp);
    this.#drawGuides(view);
    if (pair) this.#points("core", pair, view, 1);
    gl.disable(gl.BLEND);
    this.#pass("bright", spill[0], { uSharp: sharp, uSoft: soft }, sharp);
    for (let level = 1; level < spill.length; level += 1) {
      this.#pass("down", spill[level], { uSource: spill[level - 1] }, spill[level - 1]);
    }
    gl.enable(gl.BLEND);
    for (let level = spill.length - 1; level > 0; level -= 1) {
      const onto = level > 1 ? spill[level - 1] : soft;
      this.#pass("up", onto, { uSource: spill[level] }, spill[level], SPILL_SHARES[level - 1]);
    }
    gl.disable(gl.BLEND);
    this.#pass("final", this.#screen, { uSharp: sharp, uSoft: soft }, sharp);
  }

  #sky(target, view) {
    const gl = this.#gl;
    const { handle, uniform } = this.#programs.sky;
    gl.useProgram(handle);
    gl.uniform2f(uniform.uSize, ...this.#size);
    gl.uniform2f(uniform.uCentre, ...view.centre);
    gl.uniform1f(uniform.uStage, view.stage);
    gl.uniform3f(uniform.uMist, ...view.mist);
    this.#pass("sky", target, {}, target);
  }

  #points(name, pair, view, scale) {
    const gl = this.#gl;
    const program = this.#programs[name];
    const from = this.#slotOf(pair.from, pair.to);
    const to = this.#slotOf(pair.to, pair.from);
    // Clouds of different levels of detail are not blended: the newer one is shown.
    const alike = pair.from.rows === pair.to.rows;
    const order = alike ? [from, to] : [to, to];
    const index = order[0] === order[1] ? 2 + order[1] : order[0];
    gl.useProgram(program.handle);
    this.#camera(program, view, scale);
    gl.uniform1f(program.uniform.uMix, pair.mix);
    gl.uniform1f(program.uniform.uStage, view.stage * view.zoom * scale);
    const fill = Math.min(1.6, Math.max(0.7, Math.sqrt(1200 / pair.to.rows)));
    gl.uniform1f(program.uniform.uFill, fill);
    gl.uniform1f(program.uniform.uLargest, this.#largest);
    gl.uniform1f(program.uniform.uLight, view.light);
    gl.bindVertexArray(this.#arrays[index]);
    gl.drawArrays(gl.POINTS, 0, pair.to.rows);
    gl.bindVertexArray(null);
  }

  #drawGuides(view) {
    const gl = this.#gl;
    const program = this.#programs.guide;
    gl.useProgram(program.handle);
    this.#camera(program, view, 1);
    gl.uniform1f(program.uniform.uLight, view.guides);
    gl.uniform1f(program.uniform.uWidth, 1.1 * Math.max(1, view.density));
    gl.bindVertexArray(this.#guides.array);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.#guides.count);
    gl.bindVertexArray(null);
  }

  #camera({ uniform }, view, scale) {
    const gl = this.#gl;
    const turn = [view.yaw, view.pitch].flatMap((angle) => [Math.cos(angle), Math.sin(angle)]);
    gl.uniform4f(uniform.uTurn, ...turn);
    gl.uniform2f(uniform.uLens, view.distance, view.unit * scale);
    gl.uniform2f(uniform.uCentre, view.centre[0] * scale, view.centre[1] * scale);
    gl.uniform2f(uniform.uSize, this.#size[0] * scale, this.#size[1] * scale);
  }

  /** Return the slot that holds a frame; upload it over the one that is not `kept`. */
  #slotOf(frame, kept) {
    const gl = this.#gl;
    const present = this.#slots.findIndex((slot) => slot.frame === frame);
    if (present >= 0) return present;
    const index = this.#slots[0].frame === kept ? 1 : 0;
    const slot = this.#slots[index];
    gl.bindBuffer(gl.ARRAY_BUFFER, slot.buffer);
    gl.bufferData(gl.ARRAY_BUFFER, frame.bytes, gl.DYNAMIC_DRAW);
    slot.frame = frame;
    return index;
  }

  #vertexArray(from, to) {
    const gl = this.#gl;
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    for (const [side, slot] of [from, to].entries()) {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.#slots[slot].buffer);
      for (const [place, [count, offset]] of [[3, 0], [4, 6], [3, 14]].entries()) {
        const location = 3 * side + place;
        gl.enableVertexAttribArray(location);
        gl.vertexAttribPointer(location, count, gl.HALF_FLOAT, false, ROW_BYTES, offset);
      }
    }
    gl.bindVertexArray(null);
    return array;
  }

  #guideArray() {
    const gl = this.#gl;
    const heights = [-1];
    for (let pitch = 36; pitch <= 120; pitch += 12) heights.push((2 * (pitch - 26)) / 98 - 1);
    const lines = heights.map((y) => [-1, y, -1, 1, y, -1, 0.02, 0.085]);
    for (let tick = 0; tick < 9; tick += 1) {
      const x = tick / 4 - 1;
      const strength = 0.024 + 0.007 * tick;
      lines.push([x, -1, -1, x, -1, 1, strength, strength]);
    }
    lines.push([1, -1, -1, 1, 1, -1, 0.13, 0.13]);
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(lines.flat()), gl.STATIC_DRAW);
    for (const [location, [count, offset]] of [[3, 0], [3, 12], [2, 24]].entries()) {
      gl.enableVertexAttribArray(location);
      gl.vertexAttribPointer(location, count, gl.FLOAT, false, 4 * GUIDE_FLOATS, offset);
      gl.vertexAttribDivisor(location, 1);
    }
    gl.bindVertexArray(null);
    return { array, count: lines.length };
  }

  #pass(name, target, textures, source, share = 1) {
    const gl = this.#gl;
    const program = this.#programs[name];
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.framebuffer);
    gl.viewport(0, 0, target.width, target.height);
    gl.useProgram(program.handle);
    this.#textures(program, textures);
    const { uTexel, uShare } = program.uniform;
    if (uTexel) gl.uniform2f(uTexel, 1 / source.width, 1 / source.height);
    if (uShare) gl.uniform1f(uShare, share);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  #textures(program, textures) {
    const gl = this.#gl;
    for (const [unit, [name, target]] of Object.entries(textures).entries()) {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, target.texture);
      gl.uniform1i(program.uniform[name], unit);
    }
  }

  #clear(target) {
    const gl = this.#gl;
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.framebuffer);
    gl.viewport(0, 0, target.width, target.height);
    gl.clearColor(0, 0, 0, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
  }

  #target(width, height) {
    const gl = this.#gl;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    const [internal, type] = this.#format;
    gl.texImage2D(gl.TEXTURE_2D, 0, internal, width, height, 0, gl.RGBA, type, null);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.LINEAR);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    const framebuffer = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    return { texture, framebuffer, width, height };
  }

  #discard(target) {
    this.#gl.deleteFramebuffer(target.framebuffer);
    this.#gl.deleteTexture(target.texture);
  }

  #program(vertexText, fragmentText) {
    const gl = this.#gl;
    const handle = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, vertexText], [gl.FRAGMENT_SHADER, fragmentText]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(handle, shader);
    }
    gl.linkProgram(handle);
    if (!gl.getProgramParameter(handle, gl.LINK_STATUS) && !gl.isContextLost()) {
      const logs = gl.getAttachedShaders(handle).map((shader) => gl.getShaderInfoLog(shader));
      throw new Error(`The cloud cannot be drawn here: ${gl.getProgramInfoLog(handle)} ${logs}`);
    }
    const uniform = {};
    const count = gl.getProgramParameter(handle, gl.ACTIVE_UNIFORMS) ?? 0;
    for (let index = 0; index < count; index += 1) {
      const { name } = gl.getActiveUniform(handle, index);
      uniform[name] = gl.getUniformLocation(handle, name);
    }
    return { handle, uniform };
  }
}
