// Search: by file, by drop, by chance, by clicking a result. What is shown stands in the address (#train/17), so
// that going back works. Text from the server is only ever set as text.
'use strict';

const MAX_UPLOAD = 32 * 1024 * 1024;
const byId = (id) => document.getElementById(id);
const picture = (set, index, side) => `/api/images/${set}/${index}/thumbnail?side=${side}`;

/** The JSON at `url`; throws the server's reason if it refuses. */
async function ask(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Error('The server does not answer; has it been stopped?');
  }
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const search = {
  // Counts searches: an answer that comes after a newer question is dropped.
  turn: 0,

  async run(question, options) {
    const turn = ++this.turn;
    byId('status').textContent = 'Searching …';
    byId('error').hidden = true;
    byId('found').setAttribute('aria-busy', 'true');
    try {
      const separator = question.includes('?') ? '&' : '?';
      const answer = await ask(`${question}${separator}k=${byId('k').value}`, options);
      if (turn === this.turn) this.show(answer);
    } catch (error) {
      if (turn === this.turn) this.fail(error.message);
    } finally {
      byId('found').removeAttribute('aria-busy');
    }
  },

  fail(message) {
    byId('status').textContent = '';
    byId('error').textContent = message;
    byId('error').hidden = false;
  },

  show({ query, neighbors, searched, search_ms: took }) {
    const uploaded = query.set === null;
    const title = uploaded ? `Your image, ${query.width} × ${query.height}` : query.name;
    const shown = byId('query').querySelector('img');
    shown.src = uploaded ? query.thumbnail : picture(query.set, query.index, 256);
    shown.alt = `The query: ${title}`;
    const origin = uploaded ? '' : ` (${query.set} image ${query.index})`;
    byId('query').querySelector('figcaption').textContent =
      title + origin + (query.class ? `, class ${query.class}` : '');
    byId('results').replaceChildren(...neighbors.map((neighbor) => this.tile(neighbor)));
    byId('found').hidden = false;
    const judged = neighbors.filter((neighbor) => neighbor.same !== null);
    const same = judged.filter((neighbor) => neighbor.same).length;
    const verdict = judged.length ? ` ${same} of ${judged.length} are of the same class.` : '';
    byId('status').textContent =
      `${neighbors.length} nearest of ${searched} images in ${took} ms.${verdict}`;
    map.mark(query.set === 'train' ? query.index : null, neighbors.map((neighbor) => neighbor.index));
  },

  tile({ index, name, class: label, similarity, same, rank }) {
    const kind = same === null ? '' : same ? ' same' : ' other';
    const judgement = same === null ? '' : same ? ', same class' : ', other class';
    const number = similarity === null ? '?' : similarity.toFixed(3);
    const image = element('img', { src: picture('train', index, 128), alt: '', loading: 'lazy' });
    const button = element('button', { type: 'button', title: name }, image,
      element('span', { textContent: number }), element('span', { textContent: label ?? name }));
    button.setAttribute('aria-label', `${rank}: ${label ?? ''} ${name}, similarity ${number}${judgement}. Search with it.`);
    button.addEventListener('click', () => this.byIndex('train', index));
    return element('li', { className: `tile${kind}` }, button);
  },

  /** Through the address, so that it can be gone back to. */
  byIndex(set, index) {
    const address = `#${set}/${index}`;
    if (location.hash === address) this.fromAddress();
    else location.hash = address;
  },

  fromAddress() {
    const [, set, index] = /^#(train|test)\/(\d+)$/.exec(location.hash) ?? [];
    if (set) this.run(`/api/search?set=${set}&index=${index}`);
  },

  async random(set) {
    try {
      const { index } = await ask(`/api/random?set=${set}`);
      this.byIndex(set, index);
    } catch (error) {
      this.fail(error.message);
    }
  },

  upload(file) {
    if (file.size > MAX_UPLOAD) {
      this.turn += 1;
      this.fail(`${file.name} has ${(file.size / 1048576).toFixed(0)} MiB; an image may have ${MAX_UPLOAD / 1048576}.`);
      return;
    }
    // Not a place to come back to: the file is not kept.
    history.pushState(null, '', location.pathname);
    this.run('/api/search', { method: 'POST', body: file, headers: { 'content-type': 'application/octet-stream' } });
  },
};

byId('controls').addEventListener('submit', (event) => event.preventDefault());
byId('file').addEventListener('change', (event) => {
  if (event.target.files.length) search.upload(event.target.files[0]);
  // The same file may be chosen again.
  event.target.value = '';
});
byId('k').addEventListener('change', () => search.fromAddress());
for (const button of document.querySelectorAll('[data-random]')) {
  button.addEventListener('click', () => search.random(button.dataset.random));
}
window.addEventListener('hashchange', () => search.fromAddress());
window.addEventListener('dragover', (event) => {
  event.preventDefault();
  document.body.classList.add('dragging');
});
window.addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) document.body.classList.remove('dragging');
});
window.addEventListener('drop', (event) => {
  event.preventDefault();
  document.body.classList.remove('dragging');
  const file = event.dataTransfer.files[0];
  if (file) search.upload(file);
  else search.fail('That was no file; save the image first, then drop it.');
});
