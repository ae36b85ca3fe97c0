// Turns the meshes on a run's page: drag, arrow keys, buttons or touch; wheel, + and - zoom. No library, no network.
//
// A page opened from a disk (file://) may not fetch files, but may load scripts: so every mesh also lies in a script
// that hands its GLB over as text, mesh("01_made", "Z2xURg..."), and is loaded when its card comes into view.
// One WebGL context draws for all canvases, because browsers allow a page only a few.
"use strict";

(() => {
  const LENS = (24 * Math.PI) / 180; // as in picture.py, so that a mesh replaces its still picture unnoticed
  const START = { turn: (35 * Math.PI) / 180, tilt: (20 * Math.PI) / 180, zoom: 1 };
  const CREASE = Math.cos((40 * Math.PI) / 180); // faces that meet at a larger angle are not smoothed into one another
  const COLOURS = { made: [0.66, 0.74, 0.81], truth: [0.79, 0.77, 0.73] };

  // -- a GLB as triangles with normals ------------------------------------------------------------------------------

  function parse(base64) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const length = view.getUint32(12, true);
    const gltf = JSON.parse(new TextDecoder().decode(bytes.subarray(20, 20 + length)));
    const read = (index, parts) => {
      const accessor = gltf.accessors[index];
      const start = 28 + length + (gltf.bufferViews[accessor.bufferView].byteOffset || 0) + (accessor.byteOffset || 0);
      const kind = { 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array }[accessor.componentType];
      return new kind(bytes.buffer.slice(start, start + accessor.count * parts * kind.BYTES_PER_ELEMENT));
    };
    const primitive = gltf.meshes[0].primitives[0];
    return corners(read(primitive.attributes.POSITION, 3), read(primitive.indices, 1));
  }

  // Each corner of each face: position and normal, the mean over the faces around its vertex that bend little from it.
  function corners(V, F) {
    const faces = F.length / 3;
    const N = new Float32Array(F.length); // of the faces, as long as twice their area
    const around = Array.from({ length: V.length / 3 }, () => []);
    for (let f = 0; f < faces; f++) {
      const [a, b, c] = [0, 1, 2].map((k) => 3 * F[3 * f + k]);
      const p = [0, 1, 2].map((k) => V[b + k] - V[a + k]);
      const q = [0, 1, 2].map((k) => V[c + k] - V[a + k]);
      for (let k = 0; k < 3; k++) {
        N[3 * f + k] = p[(k + 1) % 3] * q[(k + 2) % 3] - p[(k + 2) % 3] * q[(k + 1) % 3];
        around[F[3 * f + k]].push(f);
      }
    }
    const size = (f) => Math.hypot(N[3 * f], N[3 * f + 1], N[3 * f + 2]) || 1e-30;
    const data = new Float32Array(6 * F.length);
    for (let f = 0; f < faces; f++) {
      for (let k = 0; k < 3; k++) {
        const vertex = F[3 * f + k];
        const normal = [0, 0, 0];
        for (const g of around[vertex]) {
          const dot = N[3 * f] * N[3 * g] + N[3 * f + 1] * N[3 * g + 1] + N[3 * f + 2] * N[3 * g + 2];
          if (g === f || dot > CREASE * size(f) * size(g)) for (let i = 0; i < 3; i++) normal[i] += N[3 * g + i];
        }
        data.set([V[3 * vertex], V[3 * vertex + 1], V[3 * vertex + 2], ...normal], 18 * f + 6 * k);
      }
    }
    return data;
  }

  // -- drawing ------------------------------------------------------------------------------------------------------

  const VERTEX = `
    attribute vec3 position, normal; uniform mat3 axes; uniform vec3 middle; uniform vec4 lens; varying vec3 n, p;
    void main() {
      n = axes * normal; p = axes * (position - middle); p.z -= lens.x;
      gl_Position = vec4(p.xy * lens.y, p.z * lens.z + lens.w, -p.z);
    }`;
  const FRAGMENT = `
    precision highp float; varying vec3 n, p; uniform vec3 colour;
    void main() {
      vec3 m = normalize(dot(n, p) > 0.0 ? -n : n);
      float light = 0.8 * max(dot(m, normalize(vec3(-1, 1.6, 1.4))), 0.0) + 0.45 * max(dot(m, normalize(vec3(1.6, 0.4, 1))), 0.0)
        + 0.2 * max(dot(m, normalize(vec3(0, -1, 0.8))), 0.0);
      gl_FragColor = vec4(min(colour * (0.35 + 0.8 * light), 1.0), 1);
    }`;

  function painter() {
    const canvas = document.createElement("canvas");
    const gl = canvas.getContext("webgl", { antialias: true, alpha: true });
    if (!gl) return null;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
    gl.useProgram(program);
    gl.enable(gl.DEPTH_TEST);
    const where = Object.fromEntries(["axes", "middle", "lens", "colour"].map((n) => [n, gl.getUniformLocation(program, n)]));
    const inputs = ["position", "normal"].map((name) => gl.getAttribLocation(program, name));

    function load(data) {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
      return { buffer, count: data.length / 6 };
    }

    function draw(shape, target, eye, frame, colour) {
      const [width, height] = [target.width, target.height];
      if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
      gl.viewport(0, 0, width, height);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.bindBuffer(gl.ARRAY_BUFFER, shape.buffer);
      inputs.forEach((input, k) => {
        gl.enableVertexAttribArray(input);
        gl.vertexAttribPointer(input, 3, gl.FLOAT, false, 24, 12 * k);
      });
      const [sin, cos, up, flat] = [Math.sin(eye.turn), Math.cos(eye.turn), Math.sin(eye.tilt), Math.cos(eye.tilt)];
      gl.uniformMatrix3fv(where.axes, false, [cos, -sin * up, sin * flat, 0, flat, up, -sin, -cos * up, cos * flat]);
      const far = frame.radius / Math.sin(LENS / 2);
      const [near, end] = [far - 1.01 * frame.radius, far + 1.01 * frame.radius];
      gl.uniform3fv(where.middle, frame.middle);
      gl.uniform4f(where.lens, far, eye.zoom / Math.tan(LENS / 2), -(end + near) / (end - near), (-2 * end * near) / (end - near));
      gl.uniform3fv(where.colour, colour);
      gl.drawArrays(gl.TRIANGLES, 0, shape.count);
      const plain = target.getContext("2d");
      plain.clearRect(0, 0, width, height);
      plain.drawImage(canvas, 0, 0);
    }
    return { canvas, load, draw };
  }

  // -- a card: what stands in it turns together ---------------------------------------------------------------------

  const arrived = {}; // name of a mesh -> who waits for its text
  window.mesh = (name, base64) => arrived[name](base64);

  function fetched(name) {
    return new Promise((resolve, reject) => {
      arrived[name] = resolve;
      const script = document.createElement("script");
      script.src = `gallery/${name}.js`;
      script.onerror = () => reject(new Error(`gallery/${name}.js is missing: keep the folder gallery beside this page.`));
      document.head.append(script);
    });
  }

  async function open(card, paint) {
    const eye = { ...START };
    const frame = { middle: card.dataset.middle.split(" ").map(Number), radius: Number(card.dataset.radius) };
    const shown = [];
    const draw = () => shown.forEach(({ shape, canvas, colour }) => paint.draw(shape, canvas, eye, frame, colour));
    let asked = 0;
    const redraw = () => { cancelAnimationFrame(asked); asked = requestAnimationFrame(draw); };
    const move = (turn, tilt, zoom = 1) => {
      eye.turn -= turn;
      eye.tilt = Math.min(1.55, Math.max(-1.55, eye.tilt + tilt));
      eye.zoom = Math.min(8, Math.max(0.5, eye.zoom * zoom));
      redraw();
    };
    const back = () => { Object.assign(eye, START); redraw(); };
    const moves = {
      ArrowLeft: () => move(-0.15, 0), ArrowRight: () => move(0.15, 0), ArrowUp: () => move(0, -0.15), ArrowDown: () => move(0, 0.15),
      "+": () => move(0, 0, 1.2), "=": () => move(0, 0, 1.2), "-": () => move(0, 0, 1 / 1.2), 0: back,
    };
    for (const figure of card.querySelectorAll("[data-mesh]")) {
      const still = figure.querySelector("img");
      let data;
      try {
        data = parse(await fetched(figure.dataset.mesh));
      } catch (error) {
        figure.querySelector("figcaption").append(` ${error.message}`);
        continue;
      }
      const canvas = document.createElement("canvas");
      canvas.tabIndex = 0;
      canvas.setAttribute("role", "application");
      canvas.setAttribute("aria-label", `${still.alt} Arrow keys turn it, plus and minus zoom, 0 goes back.`);
      handle(canvas, move, moves);
      still.hidden = true;
      still.after(canvas);
      const side = Math.round(canvas.clientWidth * Math.min(devicePixelRatio, 2));
      [canvas.width, canvas.height] = [side, side];
      shown.push({ shape: paint.load(data), canvas, colour: COLOURS[figure.dataset.kind] });
      draw();
    }
    const buttons = card.querySelector(".turn");
    buttons.hidden = !shown.length;
    buttons.addEventListener("click", (event) => moves[event.target.dataset.key]?.());
    return () => shown.splice(0).forEach(({ canvas }) => { canvas.previousSibling.hidden = false; canvas.remove(); });
  }

  // A finger that moves sideways turns the mesh, and one that moves up or down scrolls the page, as everywhere on it.
  function handle(canvas, move, moves) {
    const fingers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
      const gap = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY) || 1;
      fingers.set(event.pointerId, event);
      if (other) move(0, 0, gap(event) / gap(before));
      else move((event.clientX - before.clientX) * 0.01, (event.clientY - before.clientY) * 0.01);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
    }
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return; // the page scrolls, until a mesh is clicked
      event.preventDefault();
      move(0, 0, Math.exp(-event.deltaY * 0.0015));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      moves[event.key]();
    });
  }

  // -- the page -----------------------------------------------------------------------------------------------------

  const note = document.getElementById("gallery-note");
  const paint = painter();
  if (!paint) {
    note.textContent = "This browser has no WebGL: the meshes are shown as still pictures. The .glb files open in any 3-D program.";
    return;
  }
  note.textContent = note.dataset.how;
  const closers = [];
  const watch = new IntersectionObserver((seen) => {
    for (const { target } of seen.filter((entry) => entry.isIntersecting)) {
      watch.unobserve(target);
      open(target, paint).then((close) => closers.push(close));
    }
  }, { rootMargin: "300px" });
  document.querySelectorAll(".card[data-radius]").forEach((card) => watch.observe(card));
  paint.canvas.addEventListener("webglcontextlost", () => {
    closers.forEach((close) => close());
    note.textContent = "The graphics driver has stopped: the meshes are still pictures again. Load the page anew to turn them.";
  });
})();
