// The operator's page: it shows what the HTTP API says, and asks again every few seconds while somebody looks.
// Text from outside is only ever set as text, never as markup.

const LOOK_EVERY = 2000;      // ms between two looks
const QUEUES_EVERY = 3;       // looks between two questions to the broker, each of which opens a connection
const LETTERS_EVERY = 5;      // looks between two listings of dead letters
const HISTORY = 120;          // seconds in the charts
const PENDING_LATE = 10;      // seconds for which an order may be pending before it is said
const ANSWER_WITHIN = 10000;  // ms
const ACT_WITHIN = 120000;    // ms for what is done to many dead letters
const PAGE = 50;              // rows of a list
const LETTERS = 200;          // dead letters of a listing, and of one act

const $ = (id) => document.getElementById(id);
const main = $('main');

// ---- elements -----------------------------------------------------------------------------------------------------

const SVG = 'http://www.w3.org/2000/svg';
const DRAWN = new Set(['svg', 'rect', 'path', 'text', 'line', 'title', 'g']);

function h(tag, attributes, ...children) {
  const drawn = DRAWN.has(tag);
  const element = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Replaces what is in a place, unless it would come out the same: focus and selection stay where they are.
function put(place, ...children) {
  const next = h('div', {}, ...children);
  const shown = next.innerHTML;
  if (place.dataset.shown === shown) return;
  place.dataset.shown = shown;
  keepingFocus(place, () => place.replaceChildren(...next.childNodes));
}

// What an element is called among those of a place that is drawn anew: its id, where it leads, or its key.
function calledAs(element) {
  if (element.id) return `#${CSS.escape(element.id)}`;
  for (const name of ['href', 'data-key']) {
    if (element.hasAttribute(name)) return `${element.localName}[${name}="${CSS.escape(element.getAttribute(name))}"]`;
  }
  return null;
}

// Whoever works by keyboard stays where they are, also when something else is drawn in a place, or the same further down.
function keepingFocus(place, draw) {
  const focused = place.contains(document.activeElement) ? document.activeElement : null;
  const name = focused && calledAs(focused);
  const nth = name ? [...place.querySelectorAll(name)].indexOf(focused) : 0;
  draw();
  tellAges();
  if (!name) return;
  const same = place.querySelectorAll(name);
  (same[nth] ?? same[0])?.focus({ preventScroll: true });
}

const number = (value) => Number(value).toLocaleString('en').replace('-', '−');
const words = (code) => code.replaceAll('_', ' ');
const card = (title, ...children) => h('section', { class: 'card', 'aria-label': title }, h('h2', {}, title), ...children);
const note = (...text) => h('p', { class: 'note' }, ...text);
// A place for what is asked for.
const awaited = () => h('div', {}, h('p', { class: 'note loading' }, 'Loading…'));
const badge = (text, kind = '') => h('span', { class: `badge ${kind}` }, text);
const code = (text) => h('code', {}, text);
const orderLink = (id) => h('a', { href: `#/orders/${encodeURIComponent(id)}` }, code(id));
const counted = (count, one, more = `${one}s`) => `${number(count)} ${count === 1 ? one : more}`;
const sentence = (text) => (/[.!?…]$/.test(text) ? text : `${text}.`);

function table(caption, columns, rows) {
  const head = columns.map(([name, kind]) => h('th', { scope: 'col', class: kind }, name));
  return h('div', { class: 'scroll' }, h('table', { class: 'stack' },
    caption ? h('caption', {}, caption) : null, h('thead', {}, h('tr', {}, head)),
    h('tbody', {}, rows.map((cells) => [h('tr', {}, columns.map(([name, kind], at) =>
      // One box, so that on a phone, where the label stands beside it, it stays together.
      h('td', { class: kind, 'data-label': name }, h('div', {}, cells[at])))),
    // What needs the whole width stands below its row.
    cells.below ? h('tr', { class: 'below' }, h('td', { colspan: columns.length }, cells.below)) : null]))));
}

function age(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

const day = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit', second: '2-digit' });
const clock = (time) => h('time', { datetime: time, title: time }, day.format(new Date(time)));

// An age is written once it is on the page, and again every second: nothing is drawn anew for it.
const ago = (time) => (time ? h('time', { class: 'ago', datetime: time, title: time, 'data-after': ' ago' }) : 'never');
const lasting = (time) => h('time', { class: 'ago', datetime: time, title: time, 'data-after': '' });

function tellAges() {
  for (const element of document.querySelectorAll('time.ago')) {
    const seconds = Math.max(0, (Date.now() - Date.parse(element.dateTime)) / 1000);
    const text = age(seconds) + element.dataset.after;
    if (element.textContent !== text) element.textContent = text;
  }
}
setInterval(tellAges, 1000);

const STATUS = { confirmed: 'good', rejected: 'bad', failed: 'bad', pending: 'warn', cancelled: '' };
const VENDOR_SYNC = { done: 'good', failed: 'bad', pending: 'warn', none: '' };

// ---- the API ------------------------------------------------------------------------------------------------------

class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `The server answered ${status}.`);
    this.problem = problem;
    this.status = status;
  }
}

let logins = 0;

async function call(method, path, body, headers = {}, within = ANSWER_WITHIN) {
  const options = { method, headers: { Accept: 'application/json', ...headers }, signal: AbortSignal.timeout(within) };
  if (body !== undefined) {
    options.headers['Content-Type'] = 'application/json';
    options.body = JSON.stringify(body);
  }
  const asked = logins;
  const response = await fetch(path, options);
  const answer = await response.json().catch(() => ({}));
  // What was asked before somebody had logged in does not ask them again.
  if (response.status === 401 && path !== '/login' && asked === logins) logIn(answer.code === 'invalid_key' ? answer.detail : '');
  // What is not ready says why in its answer.
  if (!response.ok && path !== '/readyz') throw new Refused(response.status, answer);
  return answer;
}

const get = (path) => call('GET', path);

function say(...text) {
  const toast = $('toast');
  toast.replaceChildren(...text);
  toast.hidden = false;
  clearTimeout(say.timer);
  // What leads somewhere stays longer.
  say.timer = setTimeout(() => { toast.hidden = true; }, text.length > 1 ? 15000 : 6000);
}

// Runs what a button asks for, and says what went wrong.
function doing(work, tell = say) {
  return async (event) => {
    event.preventDefault();
    const button = event.submitter ?? event.currentTarget;
    // One that is disabled would lose the focus, and whoever works by keyboard their place.
    if (button.getAttribute('aria-disabled')) return;
    button.setAttribute('aria-disabled', 'true');
    try {
      await work(event);
    } catch (error) {
      tell(error.name === 'TimeoutError' ? 'The server has not answered in time. What it had begun it goes on with.' : error.message);
    } finally {
      button.removeAttribute('aria-disabled');
      acted = true;
      look();
    }
  };
}

// Asks before something is done; without an action there is only something to read.
function ask(title, content, action, kind, work) {
  const dialog = $('dialog');
  const close = () => dialog.close();
  // Behind the dialog nobody would see it.
  const trouble = h('p', { class: 'problem', role: 'alert' });
  const done = doing(async () => {
    trouble.textContent = '';
    if (await work() !== 'stay') close();
  }, (text) => { trouble.textContent = text; });
  const leave = h('button', { type: 'button', onclick: close }, action ? 'Leave it' : 'Close');
  const go = action && h('button', { type: 'button', class: kind, onclick: done }, action);
  dialog.replaceChildren(h('h2', { id: 'dialog-title' }, title), content, trouble, h('div', { class: 'row' }, go, leave));
  if (!dialog.open) dialog.showModal();
  // Enter does no harm that cannot be undone.
  (go && kind !== 'danger' ? go : leave).focus();
}

// ---- logging in, where keys are required -------------------------------------------------------------------------

// The key goes to the server once, and the browser keeps it where no script can read it.
function logIn(why) {
  const dialog = $('dialog');
  if (dialog.open && dialog.querySelector('#key')) return;
  // What somebody saw who was logged in is not left for the next.
  main.replaceChildren();
  const field = h('input', { id: 'key', type: 'password', autocomplete: 'current-password', required: true, spellcheck: 'false' });
  const trouble = h('p', { class: 'problem', role: 'alert' }, why);
  const submit = async (event) => {
    event.preventDefault();
    try {
      await call('POST', '/login', { key: field.value });
    } catch (error) {
      trouble.textContent = error.message;
      field.select();
      return;
    }
    logins += 1;
    dialog.close();
    showLogOut(true);
    route();
  };
  dialog.replaceChildren(h('form', { class: 'login', onsubmit: submit },
    h('h2', { id: 'dialog-title' }, 'Log in'),
    // Password managers keep a key under a name.
    h('input', { type: 'text', autocomplete: 'username', value: 'stockctl', readonly: true, hidden: true }),
    h('p', {}, h('label', { for: 'key' }, 'API key with the scope admin '), field),
    note('One is made by ', code('stockctl keys create NAME --scope admin'), '.'),
    trouble,
    h('div', { class: 'row' }, h('button', { type: 'submit', class: 'main' }, 'Log in'))));
  if (!dialog.open) dialog.showModal();
  field.focus();
}

function showLogOut(isIn) {
  if (isIn) localStorage.setItem('logged-in', 'yes'); else localStorage.removeItem('logged-in');
  $('log-out').hidden = !isIn;
}

$('log-out').addEventListener('click', async () => {
  await call('POST', '/logout').catch((error) => say(error.message));
  showLogOut(false);
  // At once, whenever the page would have looked again: what is on it is not for whoever comes next.
  main.replaceChildren();
  acted = true;
  look();
});
$('log-out').hidden = localStorage.getItem('logged-in') !== 'yes';

// ---- what all pages share: readiness and the charts' past ---------------------------------------------------------

const latencies = []; // [ms since 1970, p95]

function showReadiness(ready) {
  const live = $('live');
  live.className = `live ${ready ? 'on' : 'off'}`;
  live.lastElementChild.textContent = ready ? 'Live' : `No answer from the server; trying again. ${old()}`;
  const banner = $('banner');
  const said = !ready ? [] : [
    ready.postgresql !== 'up' && ready.rabbitmq === 'up'
      && 'PostgreSQL is down. Orders are accepted through RabbitMQ and decided once it is back; nothing can be read meanwhile.',
    ready.postgresql === 'up' && ready.rabbitmq === 'down'
      && 'RabbitMQ is down. Orders are accepted and wait in the outbox; they are decided once it is back.',
    ready.rabbitmq === 'blocked'
      && 'RabbitMQ blocks publishers (a memory or disk alarm). Orders wait in the outbox until the alarm is over.',
    ready.rabbitmq === 'misdeclared'
      && 'The queues in RabbitMQ have other arguments than this program needs. Its log says which, and the way out.',
    ready.postgresql !== 'up' && ready.rabbitmq !== 'up'
      && 'PostgreSQL and RabbitMQ are both down. Orders are refused with 503 until one of them is back.',
    ready.rabbitmq === 'up' && ready.consumers === 'stalled' && 'Messages wait and no consumer finishes any. Look at the log of “stockctl work”.',
    // Without RabbitMQ nobody can consume, whoever runs.
    ready.rabbitmq === 'up' && ready.consumers === 'none' && 'Nobody consumes the work queues, so no order is decided. Start “stockctl work”.',
  ].filter(Boolean);
  banner.hidden = said.length === 0;
  banner.className = ready && ready.postgresql === 'up' ? 'mild' : '';
  if (banner.textContent !== said.join(' ')) banner.textContent = said.join(' ');
}

function bars(buckets, seconds) {
  const now = Date.now();
  const width = 600, height = 90, of = HISTORY / seconds, step = width / of;
  const kinds = ['confirmed', 'rejected', 'failed', 'cancelled', 'pending'];
  const most = Math.max(1, ...buckets.map((bucket) => kinds.reduce((sum, kind) => sum + bucket[kind], 0) / seconds));
  const drawn = [];
  for (const bucket of buckets) {
    const x = width - ((now - Date.parse(bucket.at)) / 1000 / seconds) * step;
    let y = height;
    for (const kind of kinds) {
      const tall = (bucket[kind] / seconds / most) * height;
      y -= tall;
      if (tall > 0 && x > -step) drawn.push(h('rect', { class: kind, x: x.toFixed(1), y: y.toFixed(1), width: Math.max(1, step - 1).toFixed(1), height: tall.toFixed(1) }));
    }
  }
  const label = `Orders a second over the last ${HISTORY} seconds; at most ${number(most.toFixed(1))}`;
  return chart(`up to ${number(most.toFixed(1))} a second`, label, drawn);
}

// What is as high as the chart is said in words beside it: text in it would be stretched.
function chart(top, label, ...drawn) {
  return h('figure', {}, h('figcaption', {}, top),
    h('svg', { viewBox: '0 0 600 90', preserveAspectRatio: 'none', role: 'img', 'aria-label': label }, ...drawn),
    h('div', { class: 'axis', 'aria-hidden': 'true' }, ...[HISTORY, HISTORY / 2].map((seconds) => h('span', {}, `${seconds / 60} min ago`)), h('span', {}, 'now')));
}

function duration(ms) {
  if (ms < 10) return `${number(ms.toFixed(1))} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 100000 ? `${number((ms / 1000).toFixed(1))} s` : age(ms / 1000);
}

function line() {
  const now = Date.now();
  const width = 600, height = 90;
  const points = latencies.filter(([at]) => now - at < HISTORY * 1000);
  const most = Math.max(10, ...points.map(([, ms]) => ms));
  const path = points.map(([at, ms], place) => {
    const x = width - ((now - at) / 1000 / HISTORY) * width;
    // Within the stroke's width, and a point where there is no line yet.
    return `${place ? 'L' : 'M'}${x.toFixed(1)} ${(height - 2 - (ms / most) * (height - 4)).toFixed(1)}${points.length === 1 ? 'h.1' : ''}`;
  }).join('');
  const label = `Time from acceptance to decision, 95 % of orders; at most ${duration(most)}`;
  return chart(path ? `up to ${duration(most)}` : 'nothing decided yet', label, h('path', { class: 'latency', d: path || 'M0 0' }));
}

// ---- pages --------------------------------------------------------------------------------------------------------

function overviewPage() {
  const place = { orders: awaited(), latency: awaited(), queues: awaited(), vendors: awaited() };
  const product = h('input', { name: 'product', required: true, list: 'products', autocomplete: 'off', maxlength: 200 });
  const known = h('datalist', { id: 'products' });
  const form = h('form', { onsubmit: doing(async () => {
    const lines = [{ productId: product.value.trim(), quantity: Number(form.elements.quantity.value) }];
    const order = await call('POST', '/orders', { lines }, { 'Idempotency-Key': crypto.randomUUID() });
    location.hash = `#/orders/${order.id}`;
  }) },
  h('label', {}, 'Product', product), known,
  h('label', {}, 'Quantity', h('input', { name: 'quantity', type: 'number', min: 1, max: 1000000, value: 1, required: true })),
  h('button', { class: 'main' }, 'Place a test order'));
  main.replaceChildren(h('div', { class: 'cards' },
    card('Orders', place.orders), card('From acceptance to decision', place.latency),
    h('section', { class: 'card wide', 'aria-label': 'Vendors' },
      h('div', { class: 'row head' }, h('h2', {}, 'Vendors'),
        h('button', { type: 'button', id: 'sync-now', onclick: doing(async () => {
          const { requested } = await call('POST', '/admin/sync', {});
          say(`Asked for a sync of ${requested.join(', ')}.`);
        }) }, 'Sync now')), place.vendors),
    card('Queues', place.queues),
    card('Try it', note('A test order is a real one: it takes stock, and the vendors are told.'), form)));
  get('/products?limit=50').then(({ products }) => known.replaceChildren(...products.map((p) => h('option', { value: p.id }, p.name)))).catch(() => {});
  let depths = [];
  return async (turn) => {
    const asked = turn % QUEUES_EVERY === 0 ? get('/admin/queues').then((answer) => { depths = answer.queues; }).catch((error) => { depths = error; }) : null;
    const [overview, vendors] = await Promise.all([get('/admin/overview'), everyVendor()]);
    await asked;
    showOrders(place, overview, depths instanceof Error ? [] : depths);
    put(place.vendors, vendorTable(vendors, overview.vendors));
    put(place.queues, queueTable(depths, overview.outbox));
  };
}

function showOrders(place, overview, depths) {
  const { orders, decision } = overview;
  const figures = (pairs) => h('dl', { class: 'figures' }, pairs.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));
  if (decision.p95Ms !== null) {
    latencies.push([Date.now(), decision.p95Ms]);
    if (latencies.length > HISTORY) latencies.shift();
  }
  const total = Object.values(orders).reduce((sum, count) => sum + count, 0);
  const key = (kind) => h('li', {}, h('svg', { viewBox: '0 0 1 1', 'aria-hidden': 'true' }, h('rect', { class: kind, width: 1, height: 1 })), kind);
  put(place.orders,
    figures([['per second', number(overview.acceptedPerSecond.toFixed(1))], ['confirmed', number(orders.confirmed)], ['rejected', number(orders.rejected)], ['cancelled', number(orders.cancelled)], ['pending', number(overview.pending.orders)], ['failed', number(overview.failed.orders)]]),
    standing(overview, depths),
    bars(overview.buckets, overview.bucketSeconds),
    h('ul', { class: 'legend' }, ['confirmed', 'rejected', 'failed', 'pending', 'cancelled'].map(key)),
    note(total > 0 ? `Of the last ${counted(total, 'order')}, accepted within ${overview.spanSeconds} s; pending and failed are those of now.`
      : ['No orders in the last two minutes.', overview.pending.orders + overview.failed.orders === 0 && ' Place a test order below, or call POST /orders.']));
  const ms = (value) => value === null ? '–' : duration(value);
  put(place.latency, figures([['half of them', ms(decision.p50Ms)], ['95 %', ms(decision.p95Ms)], ['99 %', ms(decision.p99Ms)]]), line(),
    note('The line is the 95 % figure since this page was opened.'));
}

// What waits for somebody, however long ago it was accepted.
function standing({ pending, failed }, depths) {
  const untold = depths.find((queue) => queue.name === 'vendor_sync_dlq')?.ready ?? 0;
  return h('ul', { class: 'standing' },
    pending.orders > 0 && pending.oldestSeconds >= PENDING_LATE && h('li', {}, badge('late', 'warn'), ` ${counted(pending.orders, 'order')} pending, the oldest for ${age(pending.oldestSeconds)}.`),
    failed.orders > 0 && h('li', {}, badge('failed', 'bad'), ` Processing gave up on ${counted(failed.orders, 'order')}. `, h('a', { href: '#/dead-letters/orders_dlq' }, 'Their dead letters'), ' say why.'),
    untold > 0 && h('li', {}, badge('not told', 'bad'), ` ${counted(untold, 'message')} to vendors could not be delivered. `, h('a', { href: '#/dead-letters/vendor_sync_dlq' }, untold === 1 ? 'The dead letter' : 'The dead letters'), untold === 1 ? ' says why.' : ' say why.'));
}

async function everyVendor() {
  const all = [];
  for (let cursor = null; ;) {
    const parameters = new URLSearchParams({ limit: 200, ...(cursor && { cursor }) });
    const page = await get(`/vendors?${parameters}`);
    all.push(...page.vendors);
    cursor = page.nextCursor;
    if (!cursor) return all;
  }
}

function vendorTable(vendors, lags) {
  if (vendors.length === 0) return note('No vendor is configured: add a section [vendors.<id>] to the configuration.');
  return table('What each vendor’s database and API say; nobody waits for an answer to a dead letter, whose updates stay open', [['Vendor'], ['Last sync'], ['Open updates', 'number'], ['Unanswered', 'number'], ['Lag', 'number'], ['Takes updates']], vendors.map((vendor) => {
    const { unanswered = 0, lagSeconds = 0 } = lags.find((lag) => lag.id === vendor.id) ?? {};
    return [
      h('b', {}, vendor.id),
      lastSync(vendor),
      number(vendor.openUpdates),
      number(unanswered),
      unanswered > 0 ? age(lagSeconds) : '–',
      pushState(vendor),
    ];
  }));
}

function lastSync(vendor) {
  const when = h('span', { class: 'soft' }, ago(vendor.lastSyncAt));
  if (vendor.lastSyncError) return [badge('failed', 'bad'), ' ', words(vendor.lastSyncError), h('div', { class: 'soft' }, 'last good one: ', when)];
  return vendor.lastSyncAt ? [badge('ok', 'good'), ' ', when] : badge('not synced yet', 'warn');
}

function pushState(vendor) {
  const trouble = () => h('span', { class: 'soft' }, 'for ', lasting(vendor.pushStateSince), `: ${words(vendor.lastPushError ?? 'no answer')}`);
  switch (vendor.pushState) {
    case 'ok': return badge('yes', 'good');
    case 'failing': return [badge('failing', 'bad'), ' ', trouble()];
    case 'open': return [badge('left alone', 'bad'), ' ', trouble(), h('div', { class: 'soft' }, 'tried again by itself')];
    case 'probing': return [badge('being tried', 'warn'), ' ', trouble()];
    default: return h('span', { class: 'soft' }, 'not told anything yet');
  }
}

// As messages go: those of work, those that wait to be tried again, those that are dead.
const QUEUES = ['orders_queue', 'orders_retry_queue', 'orders_dlq', 'vendor_sync', 'vendor_sync_retry', 'vendor_sync_dlq', 'webhooks', 'webhooks_retry_1', 'webhooks_retry_2', 'webhooks_retry_3', 'webhooks_retry_4', 'webhooks_dlq'];

function queueTable(depths, outbox) {
  const trouble = depths instanceof Error && h('p', { class: 'problem' }, `The queues cannot be looked at: ${depths.message}`);
  const rows = (trouble ? [] : [...depths]).sort((a, b) => QUEUES.indexOf(a.name) - QUEUES.indexOf(b.name)).map((queue) => {
    const dead = queue.name.endsWith('_dlq');
    return [
      dead ? h('a', { href: `#/dead-letters/${queue.name}` }, queue.name) : queue.name,
      dead && queue.ready > 0 ? badge(number(queue.ready), 'bad') : number(queue.ready),
      queue.perSecond === null ? '?' : queue.perSecond < 0.05 ? '–' : `${number(queue.perSecond.toFixed(1))}/s`,
      number(queue.consumers),
    ];
  });
  // PostgreSQL knows it, whatever has become of RabbitMQ.
  rows.push(['outbox (PostgreSQL)', outbox.messages ? `${number(outbox.messages)}, oldest ${age(outbox.oldestSeconds)}` : '0', '–', '–']);
  return [trouble, table('Messages; one may hold a hundred orders. The rate: those that are finished, or that come to be retried or to the dead letters', [['Queue'], ['Waiting', 'number'], ['Rate', 'number'], ['Consumers', 'number']], rows)];
}

function productsPage() {
  const rows = awaited();
  const more = h('button', { type: 'button', hidden: true }, 'Show more');
  let query = '', inStock = false, pages = 1;
  const form = h('form', { role: 'search', onsubmit: doing(async () => { query = form.elements.q.value.trim(); inStock = form.elements.inStock.checked; pages = 1; }) },
    h('label', {}, 'Id or name', h('input', { name: 'q', type: 'search', maxlength: 100, id: 'product-search' })),
    h('label', { class: 'check' }, h('input', { name: 'inStock', type: 'checkbox' }), 'Only what is in stock'),
    h('button', { class: 'main' }, 'Search'));
  more.addEventListener('click', doing(async () => { pages += 1; }));
  main.replaceChildren(card('Products', form, rows, more));
  return async () => {
    const found = [];
    let cursor = null;
    for (let page = 0; page < pages; page += 1) {
      const parameters = new URLSearchParams({ limit: PAGE });
      if (query) parameters.set('q', query);
      if (inStock) parameters.set('inStock', 'true');
      if (cursor) parameters.set('cursor', cursor);
      const answer = await get(`/products?${parameters}`);
      found.push(...answer.products);
      cursor = answer.nextCursor;
      if (!cursor) break;
    }
    more.hidden = !cursor;
    put(rows, found.length === 0
      ? note(query || inStock ? 'Nothing is like that.' : 'No products yet. They come with the first sync: is “stockctl sync” running, and do the vendors list any?')
      : table('Available is what can be sold now: on hand at the vendors, less what is sold and not yet in their figures', [['Product'], ['Name'], ['Available', 'number'], ['At each vendor: on hand, open']], found.map((product) => [
        code(product.id), product.name,
        [product.shortfall > 0 ? badge(`${number(product.shortfall)} short`, 'bad') : null, ' ', number(product.available)],
        product.vendors.map((at) => h('div', {}, `${at.vendorId}: ${number(at.onHand)}`, at.open ? h('span', { class: 'soft' }, `, ${number(at.open)} open`) : null)),
      ])));
  };
}

function ordersPage() {
  const rows = awaited();
  let status = '';
  const find = h('form', { role: 'search', onsubmit: doing(async () => { location.hash = `#/orders/${encodeURIComponent(find.elements.id.value.trim())}`; }) },
    h('label', {}, 'Order id', h('input', { name: 'id', required: true, size: 36, autocomplete: 'off' })), h('button', { class: 'main' }, 'Find'));
  const choice = h('select', { id: 'order-status', onchange: doing(async () => { status = choice.value; }) },
    ['', 'pending', 'confirmed', 'rejected', 'failed', 'cancelled'].map((value) => h('option', { value }, value || 'any')));
  main.replaceChildren(card('Find an order', find), card('Newest orders', h('div', { class: 'row' }, h('label', {}, 'Status', choice)), rows));
  return async () => {
    const { orders, nextCursor } = await get(`/orders?limit=${PAGE}${status ? `&status=${status}` : ''}`);
    put(rows, orders.length === 0
      ? note(nextCursor ? 'None among the newest 100 000 orders.' : status ? `No order is ${status}.` : 'No orders yet. Place a test order on the overview, or call POST /orders.')
      : table(`The newest ${PAGE}`, [['Order'], ['Accepted'], ['Status'], ['Vendors told'], ['Lines']], orders.map((order) => [
        orderLink(order.id), clock(order.acceptedAt), badge(order.status, STATUS[order.status]), badge(order.vendorSync, VENDOR_SYNC[order.vendorSync]), linesOf(order),
      ])));
  };
}

const linesOf = (order) => order.lines.map((line) => `${number(line.quantity)} × ${line.productId}`).join(', ');

function orderPage(id) {
  const place = awaited();
  main.replaceChildren(card('Order', h('p', {}, code(id)), place));
  let letter = null;
  return async (turn) => {
    let order;
    try {
      order = await get(`/orders/${encodeURIComponent(id)}`);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      put(place, h('p', { class: 'problem' }, error.message), h('p', {}, h('a', { href: '#/orders' }, 'To the newest orders')));
      return;
    }
    const can = ['pending', 'failed', 'confirmed'].includes(order.status);
    const cancel = h('button', { type: 'button', class: 'danger', id: 'cancel-order', onclick: () => ask('Cancel this order?',
      note('What was taken for it is returned to the vendors. This cannot be undone.'), 'Cancel the order', 'danger',
      () => call('POST', `/orders/${order.id}/cancel`, {})) }, 'Cancel the order…');
    const letters = order.status === 'failed' ? 'orders_dlq' : order.vendorSync === 'failed' ? 'vendor_sync_dlq' : null;
    // Asked for once: a look into the queue holds it.
    if (!letters) letter = null;
    else if (acted || (!letter && turn % LETTERS_EVERY === 0)) {
      acted = false;
      const found = await get(`/admin/dead-letters/${letters}?orderId=${encodeURIComponent(id)}&limit=1`).catch(() => null);
      letter = found?.deadLetters[0] ?? null;
    }
    put(place,
      h('p', {}, badge(order.status, STATUS[order.status]), ' ', order.vendorSync === 'failed' ? [badge('a vendor could not be told', 'bad'), ' '] : null, linesOf(order), order.reference ? ` (${order.reference})` : null, order.caller ? `, placed by ${order.caller}` : null),
      order.reason && !(letter && order.status === 'failed') ? h('p', { class: 'problem' }, reasonOf(order.reason)) : null,
      letter ? h('p', { class: 'problem' }, `${order.status === 'failed' ? 'Processing gave up' : `${letter.body?.vendorId ?? 'A vendor'} could not be told`} (${words(letter.reason ?? 'no reason')}): `, letter.error ?? 'no error is noted') : null,
      letters ? h('p', {}, 'Mend the cause, then replay ', h('a', { href: `#/dead-letters/${letters}/${order.id}` }, 'its dead letter'), '.') : null,
      h('h3', {}, 'History'),
      h('ol', { class: 'history' }, (order.history ?? []).map((entry) => h('li', {}, clock(entry.at), ' ', h('b', {}, entry.event.replaceAll('_', ' ')),
        entry.vendorId ? ` ${entry.vendorId}` : null, entry.outcome ? ` ${entry.outcome}` : null))),
      order.updates.length ? table('What the vendors are told', [['Vendor'], ['Product'], ['Change', 'number'], ['State']], order.updates.map((update) => [
        update.vendorId, code(update.productId), number(update.delta), badge(update.state, { open: 'warn', acknowledged: 'good', applied: 'good', rejected: 'bad', void: '' }[update.state])])) : null,
      can ? h('p', {}, cancel) : null);
  };
}

function reasonOf(reason) {
  switch (reason.code) {
    case 'insufficient_stock': return `Not enough stock: ${number(reason.requested)} of ${reason.productId} asked for, ${number(reason.available)} available.`;
    case 'unknown_product': return `No vendor has the product ${reason.productId ?? ''}.`;
    case 'processing_failed': return 'Processing gave up.';
    case 'vendor_rejected': return `The vendor had sold ${reason.productId} elsewhere, and no other vendor could serve it.`;
    default: return [reason.code.replaceAll('_', ' '), reason.error].filter(Boolean).join(': ');
  }
}

// Where the letters of a queue lead, once they are dropped.
const DROPPED = {
  orders_dlq: 'They are taken out for good and kept in the database. Their orders are cancelled.',
  vendor_sync_dlq: 'They are taken out for good and kept in the database. Their orders are cancelled, and what was taken is returned.',
  webhooks_dlq: 'They are taken out for good and kept in the database. What they tell is never told to their receivers.',
};

function deadLettersPage(named, order = '') {
  const queue = named || 'orders_dlq';
  const rows = awaited(), actions = h('div', { class: 'row' }), rest = h('div', { class: 'row' });
  // Letters by their id, and whole groups by their reason: those without an id and those that are not shown are in these only.
  const chosen = new Set(), groups = new Set();
  const opened = new Map(); // whole letters by id; null until they have come
  let letters = [], behind = 0, pages = 1;
  const tabs = h('nav', { 'aria-label': 'Queues' });
  const showTabs = (depths) => put(tabs, Object.keys(DROPPED).map((name) => {
    const ready = depths.find((depth) => depth.name === name)?.ready ?? 0;
    return h('a', { href: `#/dead-letters/${name}`, 'aria-current': name === queue ? 'page' : null }, name, ready > 0 ? ` (${number(ready)})` : null);
  }));
  showTabs([]);
  const act = (name, word, kind) => h('button', { type: 'button', class: kind, id: `${name}-chosen`, onclick: doing(() => rehearse(name, word, kind)) }, `${word} the chosen…`);
  actions.append(act('replay', 'Replay', 'main'), act('drop', 'Drop', 'danger'));
  const more = h('button', { type: 'button', id: 'more-letters', onclick: doing(async () => { pages += 1; }) }, `Show ${LETTERS} more`);
  main.replaceChildren(card('Dead letters', tabs,
    order ? note('Those of order ', orderLink(order), '. ', h('a', { href: `#/dead-letters/${queue}` }, 'Show all')) : null, actions, rows, rest));

  // What is done holds the letters, and a look would only wait for it.
  let under = 0;
  const post = async (name, body) => {
    under += 1;
    try {
      return await call('POST', `/admin/dead-letters/${queue}/${name}`, order ? { ...body, orderId: order } : body, {}, ACT_WITHIN);
    } finally {
      under -= 1;
    }
  };
  const none = () => ({ done: [], orders: [], kept: new Map(), notFound: [], notLookedAt: 0 });
  const add = (all, report) => {
    all.done.push(...(report.replayed ?? report.dropped));
    all.orders.push(...(report.revivedOrders ?? report.cancelledOrders ?? []));
    for (const letter of report.kept ?? []) all.kept.set(letter.messageId, letter.why);
    all.notFound.push(...(report.notFound ?? []));
    return (report.replayed ?? report.dropped).length;
  };

  // What it would come to, and then, if somebody says so, that and nothing that has come since.
  async function rehearse(name, word, kind) {
    const of = { ids: [...chosen], groups: [...groups] };
    if (of.ids.length + of.groups.length === 0) { say('Choose letters first.'); return; }
    const planned = none(), counts = new Map();
    for (let from = 0; from < of.ids.length; from += LETTERS) add(planned, await post(name, { messageIds: of.ids.slice(from, from + LETTERS), dryRun: true }));
    for (const reason of of.groups) {
      const report = await post(name, { reason, dryRun: true });
      add(planned, report);
      planned.notLookedAt += report.notLookedAt ?? 0;
      counts.set(reason, (report.replayed ?? report.dropped).length + (report.kept ?? []).length);
    }
    const { done, orders } = planned;
    const content = h('div', {},
      note(name === 'replay' ? 'They go back to the queue they came from, as if they were new. What was tried in a dry run:' : `${DROPPED[queue]} What was tried in a dry run:`),
      h('ul', {}, h('li', {}, `letters: ${number(done.length)}`), h('li', {}, `${name === 'replay' ? 'orders that become pending again' : 'orders that are cancelled'}: ${number(orders.length)}`)),
      exceptions(planned), orderList(orders));
    if (done.length === 0) ask(`Nothing to ${name}`, content);
    else ask(`${word} ${counted(done.length, 'letter')}?`, content, `${word} ${number(done.length)}`, kind, () => perform(name, word, of, counts));
  }

  async function perform(name, word, of, counts) {
    const real = none();
    for (let from = 0; from < of.ids.length; from += LETTERS) add(real, await post(name, { messageIds: of.ids.slice(from, from + LETTERS) }));
    for (const [reason, count] of counts) {
      // From the front of the queue, so that what has come since, behind them, stays. Those that are kept stay in front.
      let left = count, kept = 0;
      while (left > kept) {
        const report = await post(name, { reason, limit: Math.min(left, LETTERS) });
        kept = (report.kept ?? []).length;
        const before = left;
        left -= add(real, report);
        if (left === before) break;
      }
    }
    chosen.clear();
    groups.clear();
    const said = `${word === 'Replay' ? 'Replayed' : 'Dropped'}: ${number(real.done.length)}.`;
    if (real.kept.size + real.notFound.length === 0) {
      say(said, ...real.orders.slice(0, 3).map((id) => [' ', orderLink(id)]).flat());
      return undefined;
    }
    ask(said, h('div', {}, exceptions(real), orderList(real.orders)));
    return 'stay';
  }

  function exceptions({ kept, notFound, notLookedAt }) {
    return [
      kept.size > 0 && [h('h3', {}, `Kept: ${number(kept.size)}`), h('ul', { class: 'long-list' }, [...kept].map(([id, why]) => h('li', {}, code(id || 'no id'), `: ${why}`)))],
      notFound.length > 0 && [h('h3', {}, `No longer there: ${number(notFound.length)}`), h('ul', { class: 'long-list' }, notFound.map((id) => h('li', {}, code(id))))],
      notLookedAt > 0 && note(`${counted(notLookedAt, 'letter')} further back in the queue were not looked at.`),
    ];
  }

  const orderList = (orders) => h('ul', { class: 'long-list' }, orders.slice(0, 20).map((id) => h('li', {}, orderLink(id))));

  const show = () => {
    if (letters.length === 0) {
      put(rows, note(order ? 'Nothing here: its message was handled, or waits to be.' : 'Nothing here: every message was handled. What cannot be, ends here with its reason.'));
      rest.replaceChildren();
      return;
    }
    const reasons = letters.reduce((map, letter) => map.set(letter.reason ?? '', [...(map.get(letter.reason ?? '') ?? []), letter]), new Map());
    // What is ticked is no part of the markup, so that it is drawn each time.
    delete rows.dataset.shown;
    put(rows, [...reasons].map(([reason, of]) => group(reason, of)));
    rest.replaceChildren(...(behind > 0 ? [note(`${counted(behind, 'letter')} further back in the queue ${behind === 1 ? 'is' : 'are'} not shown.`), more] : []));
  };

  function group(reason, of) {
    const label = reason || 'no reason';
    const all = h('input', { type: 'checkbox', id: `all-${label}`, 'aria-label': `Choose all with ${label}`, onchange: () => {
      // Only what has a reason can be meant by it.
      if (reason) all.checked ? groups.add(reason) : groups.delete(reason);
      of.forEach((letter) => (all.checked && !reason && letter.messageId ? chosen.add(letter.messageId) : chosen.delete(letter.messageId)));
      show();
    } });
    const named = of.filter((letter) => letter.messageId);
    all.checked = reason ? groups.has(reason) : named.length > 0 && named.every((letter) => chosen.has(letter.messageId));
    const without = of.length - named.length;
    return h('section', { 'aria-label': label },
      h('h3', {}, h('label', { class: 'check' }, all, `${words(label)} (${number(of.length)}${behind > 0 ? ' shown' : ''})`)),
      groups.has(reason) && behind > 0 && note(`All with this reason are chosen, also those that are not shown.`),
      without > 0 && note(`${counted(without, 'letter')} without an id: ${reason ? 'to act on them, choose all with this reason' : 'stockctl dlq can act on the whole queue'}.`),
      table('', [['Choose'], ['Message', 'long id'], ['When', 'short'], ['Attempts', 'number'], ['What went wrong', 'long']], of.map((letter) => letterRow(letter, reason))));
  }

  // What a letter is about, whoever wrote it.
  function concerns(letter) {
    const { body, orders = [] } = letter;
    const about = [];
    if (queue === 'vendor_sync_dlq' && typeof body?.vendorId === 'string') about.push(h('div', { class: 'soft' }, `${body.vendorId}${Array.isArray(body.updates) ? `, ${counted(body.updates.length, 'update')}` : ''}`));
    if (orders.length > 0) {
      about.push(h('div', { class: 'soft' }, `${orders.length === 1 ? 'order' : 'orders'} `, orders.slice(0, 3).map((id, at) => [at ? ', ' : '', h('a', { href: `#/orders/${encodeURIComponent(id)}` }, queue === 'orders_dlq' && orders.length === 1 && id === letter.messageId ? 'with this id' : code(id))]).flat(), orders.length > 3 ? ` and ${number(orders.length - 3)} more` : null));
    }
    return about;
  }

  const beginning = (text) => (text.length > 240 ? `${text.slice(0, 240)}…` : text);

  function letterRow(letter, reason) {
    const id = letter.messageId;
    const isWhole = Boolean(reason) && groups.has(reason);
    const nth = letters.filter((other) => other.messageId === id).indexOf(letter);
    const key = nth > 0 ? `${id}-${nth}` : id;
    const box = h('input', { type: 'checkbox', id: `choose-${key}`, disabled: !id || isWhole, 'aria-label': `Choose ${id || 'a letter without an id'}`, onchange: () => { box.checked ? chosen.add(id) : chosen.delete(id); show(); } });
    box.checked = isWhole || chosen.has(id);
    const inspect = h('button', { type: 'button', id: `inspect-${key}`, class: 'link', 'aria-expanded': String(opened.has(key)), onclick: () => open(letter, key) }, code(id || 'no id'));
    const cells = [box, [inspect, concerns(letter)], letter.deadLetteredAt ? [clock(letter.deadLetteredAt), h('div', { class: 'soft' }, ago(letter.deadLetteredAt))] : '–', letter.attempts ?? '–', letter.error ? beginning(letter.error) : '–'];
    if (opened.has(key)) cells.below = whole(opened.get(key) ?? letter);
    return cells;
  }

  async function open(letter, key) {
    if (opened.delete(key)) { show(); return; }
    opened.set(key, null);
    show();
    // One without an id, or with another's, is shown as far as the list knows it.
    if (!letter.messageId || key !== letter.messageId) return;
    const found = await get(`/admin/dead-letters/${queue}/${encodeURIComponent(letter.messageId)}`).catch((error) => ({ ...letter, trouble: error.message }));
    if (opened.has(key)) { opened.set(key, found); show(); }
  }

  const whole = (letter) => h('dl', { class: 'whole' }, [
    ['Reason', letter.reason ? words(letter.reason) : '–'],
    letter.cause && ['Cause', words(letter.cause)],
    ['Error', h('pre', {}, letter.error ?? '–')],
    letter.headers && ['Headers', h('pre', {}, Object.entries(letter.headers).map(([name, value]) => `${name}: ${value}`).join('\n'))],
    letter.trouble && ['Headers', h('p', { class: 'problem' }, letter.trouble)],
    ['Message', h('pre', {}, typeof letter.body === 'string' ? letter.body : JSON.stringify(letter.body, null, 2))],
  ].filter(Boolean).map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));

  let before = '';
  return async (turn) => {
    // A look takes the letters out and puts them back, and one session looks at a time.
    if ((turn % LETTERS_EVERY !== 0 && !acted) || under > 0) return;
    acted = false;
    // Before the look, which holds the letters meanwhile.
    const { queues } = await get('/admin/queues').catch(() => ({ queues: [] }));
    showTabs(queues);
    const full = Object.keys(DROPPED).find((name) => queues.some((depth) => depth.name === name && depth.ready > 0));
    // Whoever has named no queue is led to where there is something.
    if (!named && full && full !== queue) { location.replace(`#/dead-letters/${full}`); return; }
    const found = [];
    let answer = { notLookedAt: 0, nextCursor: null };
    for (let at = 0; at < pages; at += 1) {
      const parameters = new URLSearchParams({ limit: LETTERS });
      if (answer.nextCursor) parameters.set('cursor', answer.nextCursor);
      if (order) parameters.set('orderId', order);
      try {
        answer = await get(`/admin/dead-letters/${queue}?${parameters}`);
      } catch (error) {
        // The letter at which the page before ended was done with meanwhile; the next look begins anew.
        if (at === 0 || error.status !== 400) throw error;
        break;
      }
      found.push(...answer.deadLetters);
      if (!answer.nextCursor) break;
    }
    letters = found;
    behind = answer.notLookedAt;
    // What is gone is not chosen any more.
    const ids = new Set(letters.map((letter) => letter.messageId)), there = new Set(letters.map((letter) => letter.reason));
    for (const id of chosen) if (!ids.has(id)) chosen.delete(id);
    for (const reason of groups) if (!there.has(reason)) groups.delete(reason);
    const now = JSON.stringify([letters, behind]);
    // Redrawn only when something changed, so that it can be read and chosen from.
    if (now !== before) { before = now; show(); }
  };
}

// ---- which page, and when to look ---------------------------------------------------------------------------------

let page = null, turn = 0, timer, looking = false, acted = false;
let seen = null; // when what is shown was asked for

// What was typed by hand may be no encoding of anything; then it names nothing that there is.
function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

function route() {
  const [name = '', ...rest] = location.hash.replace(/^#\//, '').split('/').map(decoded);
  const pages = { '': overviewPage, products: productsPage, orders: rest[0] ? orderPage : ordersPage, 'dead-letters': deadLettersPage };
  for (const link of document.querySelectorAll('header nav a')) {
    if (link.getAttribute('href') === `#/${name}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  turn = 0;
  seen = null;
  page = (pages[name] ?? overviewPage)(...rest);
  document.title = name ? `${name.replace('-', ' ')} – stockctl` : 'stockctl';
  look();
}

// What stays on the page while nothing new comes must not be taken for the present.
const old = () => (seen ? `What is shown is of ${seen.toLocaleTimeString('en-GB')}.` : '');

// One look at a time: what is asked for meanwhile follows at once.
async function look() {
  if (looking) { look.again = true; return; }
  looking = true;
  clearTimeout(timer);
  const showing = page;
  try {
    const ready = await get('/readyz').catch(() => null);
    showReadiness(ready);
    if (ready) {
      const now = new Date();
      await showing(turn);
      if (showing === page) seen = now;
    }
  } catch (error) {
    // Whoever has to log in sees what for.
    if (showing === page && error.status !== 401 && !$('trouble')) main.prepend(h('p', { class: 'problem card', id: 'trouble' }, `${sentence(error.message)} ${old()}`));
    looking = false;
    schedule();
    return;
  }
  if (showing === page) $('trouble')?.remove();
  turn += 1;
  looking = false;
  schedule();
}

function schedule() {
  if (look.again) { look.again = false; look(); return; }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(look, LOOK_EVERY);
}

addEventListener('hashchange', () => { $('toast').hidden = true; route(); main.focus(); });
document.addEventListener('visibilitychange', () => { if (!document.hidden) look(); });
route();
