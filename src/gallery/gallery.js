'use strict';
// Rows by keyboard, a line that names the picture, and the filter. Without this script all rows are there to read.
(() => {
  const rows = [...document.querySelectorAll('.retrieval')];
  const status = document.getElementById('status');
  const filter = document.getElementById('filter');
  document.querySelectorAll('.hint').forEach((hint) => { hint.hidden = false; });
  if (status) status.hidden = false;

  const visible = () => rows.filter((row) => !row.hidden);
  const tilesOf = (row) => [...row.querySelectorAll('.tile')];

  // One row at a time is a stop of the Tab key; a thousand would shut a reader in.
  let stop = null;
  const setStop = (row) => {
    if (stop) stop.tabIndex = -1;
    stop = row;
    if (row) row.tabIndex = 0;
  };
  rows.forEach((row) => { row.tabIndex = -1; });
  setStop(rows[0]);

  const go = (element) => {
    if (!element) return;
    const row = element.closest('.retrieval');
    setStop(row);
    if (element !== row) element.tabIndex = -1;
    element.focus({ preventScroll: true });
    element.scrollIntoView({ block: 'nearest' });
  };

  const tell = (event) => {
    const tile = event.target.closest && event.target.closest('.tile');
    const image = tile && tile.querySelector('img');
    if (image && status) status.textContent = `${image.alt}: ${tile.innerText.trim().replace(/\s*\n\s*/g, ', ')}`;
  };
  for (const event of ['focusin', 'mouseover', 'click']) document.addEventListener(event, tell);

  document.addEventListener('keydown', (event) => {
    const at = document.activeElement;
    const row = at && at.closest('.retrieval');
    if (!row || event.altKey || event.ctrlKey || event.metaKey) return;
    const all = visible();
    const here = all.indexOf(row);
    const tiles = tilesOf(row);
    const tile = tiles.indexOf(at);
    const target = {
      ArrowDown: () => all[Math.min(here + 1, all.length - 1)],
      ArrowUp: () => all[Math.max(here - 1, 0)],
      Home: () => all[0],
      End: () => all[all.length - 1],
      ArrowRight: () => tiles[Math.min(tile + 1, tiles.length - 1)],
      ArrowLeft: () => (tile > 0 ? tiles[tile - 1] : row),
      Escape: () => row,
    }[event.key];
    if (!target) return;
    event.preventDefault();
    go(target());
  });
  document.addEventListener('focusin', (event) => {
    if (rows.includes(event.target)) setStop(event.target);
  });

  if (!filter) return;
  filter.hidden = false;
  const apply = () => {
    const outcome = filter.elements.outcome.value;
    const label = filter.elements.class.value;
    for (const row of rows) {
      row.hidden = (outcome && row.dataset.outcome !== outcome) || (label && row.dataset.class !== label);
    }
    for (const section of document.querySelectorAll('section.outcome')) {
      section.hidden = !section.querySelector('.retrieval:not([hidden])');
    }
    const left = visible();
    filter.elements.count.value = `${left.length} of ${rows.length} queries`;
    // Other rows are read from the first one, not from where the ones before were left.
    setStop(left[0]);
  };
  filter.addEventListener('change', apply);
  filter.addEventListener('submit', (event) => event.preventDefault());
  apply();
})();
