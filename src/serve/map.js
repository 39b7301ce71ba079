// The map: points on a canvas, moved and zoomed by pointer or keyboard.
const map = {
  canvas: byId('map'),
  tip: byId('tip'),
  // Columns as the server sends them; empty until it has.
  points: { index: [], x: [], y: [], label: null, classes: [] },
  // What lies in the middle, and pixels to a unit at zoom 1 are half the shorter side.
  centre: [0, 0],
  zoom: 1,
  current: null,
  only: null,
  marked: { query: null, found: new Set() },
  details: new Map(),

  async load() {
    byId('map-note').textContent = 'Computing the map …';
    try {
      this.points = await ask('/api/map');
    } catch (error) {
      byId('map-note').textContent = error.message;
      return;
    }
    const { points, of, explained } = this.points;
    const share = explained.map((part) => `${(100 * part).toFixed(0)} %`).join(' and ');
    byId('map-note').textContent = `${points} of ${of} images; the axes have ${share} of the variance.`;
    this.legend();
    this.draw();
  },

  /** Hues a golden angle apart: neighbours in the list differ most. */
  colour(label) {
    const dark = matchMedia('(prefers-color-scheme: dark)').matches;
    if (label === null || label === undefined) return dark ? '#8fa3bd' : '#4b6584';
    return `hsl(${(label * 137.508 + 20) % 360} ${dark ? '65% 65%' : '70% 42%'})`;
  },

  legend() {
    const { label, classes } = this.points;
    const present = [...new Set(label ?? [])].sort((a, b) => a - b);
    byId('legend').replaceChildren(...present.map((number) => {
      const button = element('button', { type: 'button', textContent: classes[number] });
      button.style.setProperty('--colour', this.colour(number));
      button.setAttribute('aria-pressed', String(this.only === number));
      button.addEventListener('click', () => {
        this.only = this.only === number ? null : number;
        for (const other of byId('legend').querySelectorAll('button')) {
          other.setAttribute('aria-pressed', String(other === button && this.only === number));
        }
        this.draw();
      });
      return element('li', {}, button);
    }));
  },

  scale() {
    return 0.47 * Math.min(this.canvas.clientWidth, this.canvas.clientHeight) * this.zoom;
  },

  place(i) {
    const scale = this.scale();
    return [
      this.canvas.clientWidth / 2 + (this.points.x[i] - this.centre[0]) * scale,
      this.canvas.clientHeight / 2 - (this.points.y[i] - this.centre[1]) * scale,
    ];
  },

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.paint();
    });
  },

  paint() {
    const { canvas, points } = this;
    const density = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
    const context = canvas.getContext('2d');
    context.scale(density, density);
    const ink = getComputedStyle(document.body).color;
    const radius = Math.min(2.5 + Math.log2(this.zoom), 7);
    const dot = (i, size) => {
      const [x, y] = this.place(i);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) return;
      context.beginPath();
      context.arc(x, y, size, 0, 2 * Math.PI);
      context.fill();
    };
    points.index.forEach((_, i) => {
      const label = points.label?.[i];
      context.globalAlpha = this.only === null || this.only === label ? 0.85 : 0.1;
      context.fillStyle = this.colour(label);
      dot(i, Math.max(radius, 2));
    });
    context.globalAlpha = 1;
    context.strokeStyle = ink;
    context.lineWidth = 2;
    const ring = (i, size) => {
      const [x, y] = this.place(i);
      context.beginPath();
      context.arc(x, y, size, 0, 2 * Math.PI);
      context.stroke();
    };
    points.index.forEach((index, i) => {
      if (this.marked.found.has(index)) ring(i, 5);
      if (this.marked.query === index) ring(i, 10);
    });
    if (this.current !== null) ring(this.current, 8);
  },

  mark(query, found) {
    this.marked = { query, found: new Set(found) };
    this.draw();
  },

  /** The visible point that `worth` values most. */
  best(worth) {
    let [best, most] = [null, -Infinity];
    this.points.index.forEach((_, i) => {
      if (this.only !== null && this.points.label?.[i] !== this.only) return;
      const value = worth(...this.place(i), i);
      if (value > most) [best, most] = [i, value];
    });
    return best;
  },

  at(x, y, within) {
    return this.best((px, py) => {
      const distance = Math.hypot(px - x, py - y);
      return distance <= within ? -distance : -Infinity;
    });
  },

  /** Shows which image point `i` is; null hides. */
  async point(i, aloud) {
    this.current = i;
    this.draw();
    if (i === null) {
      this.tip.hidden = true;
      return;
    }
    const index = this.points.index[i];
    const [x, y] = this.place(i);
    this.tip.style.left = `${Math.max(0, Math.min(x + 12, this.canvas.clientWidth - 140))}px`;
    this.tip.style.top = `${Math.max(0, Math.min(y + 12, this.canvas.clientHeight - 176))}px`;
    const label = this.points.label?.[i];
    const name = label === undefined || label === null ? '' : this.points.classes[label];
    this.tip.querySelector('span').textContent = name;
    this.tip.querySelector('img').src = picture('train', index, 128);
    this.tip.hidden = false;
    try {
      if (!this.details.has(index)) this.details.set(index, await ask(`/api/images/train/${index}`));
    } catch {
      return;
    }
    if (this.current !== i) return;
    const text = [name, this.details.get(index).name].filter(Boolean).join(': ');
    this.tip.querySelector('span').textContent = text;
    if (aloud) byId('map-status').textContent = text;
  },

  /** The nearest point in the direction of a key, preferring straight ahead. */
  step(dx, dy) {
    if (this.current === null) {
      return this.at(this.canvas.clientWidth / 2, this.canvas.clientHeight / 2, Infinity);
    }
    const [x, y] = this.place(this.current);
    const next = this.best((px, py, i) => {
      const along = (px - x) * dx + (py - y) * dy;
      const across = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      return i === this.current || along <= 0.5 ? -Infinity : -(along + 2 * across);
    });
    return next ?? this.current;
  },

  /** Zooms by `factor` so that what is at (x, y) stays there; 0 shows everything. */
  zoomBy(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    if (factor === 0) {
      [this.zoom, this.centre] = [1, [0, 0]];
    } else {
      const [dx, dy] = [x - this.canvas.clientWidth / 2, y - this.canvas.clientHeight / 2];
      const before = this.scale();
      this.zoom = Math.min(200, Math.max(0.5, this.zoom * factor));
      const change = 1 / before - 1 / this.scale();
      this.centre = [this.centre[0] + dx * change, this.centre[1] - dy * change];
    }
    this.tip.hidden = true;
    this.draw();
  },

  /** Moves the view so that point `i` is in it. */
  reveal(i) {
    const [x, y] = this.place(i);
    const margin = 20;
    if (x < margin || y < margin || x > this.canvas.clientWidth - margin || y > this.canvas.clientHeight - margin) {
      this.centre = [this.points.x[i], this.points.y[i]];
    }
  },

  choose(i) {
    if (i === null) return;
    search.byIndex('train', this.points.index[i]);
  },

  listen() {
    const { canvas } = this;
    let held = null;
    const position = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left - canvas.clientLeft, event.clientY - box.top - canvas.clientTop];
    };
    canvas.addEventListener('pointerdown', (event) => {
      held = { from: position(event), centre: this.centre, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener('pointermove', (event) => {
      const [x, y] = position(event);
      if (!held) {
        const near = this.at(x, y, 12);
        if (near !== this.current) this.point(near, false);
        return;
      }
      const [dx, dy] = [x - held.from[0], y - held.from[1]];
      held.moved ||= Math.hypot(dx, dy) > 4;
      if (held.moved) {
        this.tip.hidden = true;
        this.centre = [held.centre[0] - dx / this.scale(), held.centre[1] + dy / this.scale()];
        this.draw();
      }
    });
    canvas.addEventListener('pointerup', (event) => {
      if (held && !held.moved) this.choose(this.at(...position(event), 16));
      held = null;
    });
    canvas.addEventListener('pointercancel', () => { held = null; });
    canvas.addEventListener('pointerleave', () => { if (!held) this.point(null); });
    canvas.addEventListener('blur', () => this.point(null));
    canvas.addEventListener('wheel', (event) => {
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY / 300), ...position(event));
    }, { passive: false });
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    canvas.addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (directions[event.key]) {
        const next = this.step(...directions[event.key]);
        if (next !== null) {
          this.reveal(next);
          this.point(next, true);
        }
      } else if (event.key === '+' || event.key === '=') this.zoomBy(1.5, ...this.middle());
      else if (event.key === '-') this.zoomBy(1 / 1.5, ...this.middle());
      else if (event.key === '0') this.zoomBy(0);
      else if (event.key === 'Enter' || event.key === ' ') this.choose(this.current);
      else if (event.key === 'Escape') this.point(null);
      else return;
      event.preventDefault();
    });
    for (const button of document.querySelectorAll('[data-zoom]')) {
      button.addEventListener('click', () => this.zoomBy(Number(button.dataset.zoom)));
    }
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
      this.legend();
      this.draw();
    });
  },

  /** Where the keyboard zooms: at the current point, or the middle. */
  middle() {
    return this.current === null ? [] : this.place(this.current);
  },
};

map.listen();
map.load();
search.fromAddress();
