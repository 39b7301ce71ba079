// The curves: asked for anew every few seconds while the page is looked at, drawn again when they have changed.
const curves = {
  PAUSE_MS: 5000,
  revision: null,

  async refresh() {
    if (document.hidden) return;
    try {
      const metrics = await ask('/api/metrics');
      if (metrics.revision === this.revision) return;
      this.revision = metrics.revision;
      this.show(metrics);
    } catch (error) {
      byId('curves-note').textContent = error.message;
    }
  },

  show({ newest, evaluations, revision }) {
    if (newest) {
      const loss = newest.loss === null ? 'not finite' : newest.loss.toFixed(3);
      byId('curves-note').textContent =
        `Epoch ${newest.epoch}, step ${newest.step}: loss ${loss}, ${Math.round(newest.images_per_s)} images/s. Follows the run while it trains; the search stays with the checkpoint above.`;
    }
    byId('curves').src = `/api/curves.svg?revision=${revision}`;
    const cell = (text, number) => element('td', { textContent: text ?? '', className: number ? 'number' : '' });
    const rows = evaluations.map(({ metric, bank, layer, k, epoch, value }) => element('tr', {},
      cell(metric), cell(bank), cell(layer), cell(k, true), cell(epoch, true),
      cell(value === null ? 'not finite' : value.toFixed(2), true)));
    byId('evaluations').tBodies[0].replaceChildren(...rows);
    byId('evaluations').hidden = rows.length === 0;
  },
};

if (byId('curves')) {
  curves.refresh();
  setInterval(() => curves.refresh(), curves.PAUSE_MS);
}
