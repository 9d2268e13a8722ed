// What is wrong with the looks of the page, in a window as wide as the argument says; a list of sentences.
const width = arguments[0];
const poor = [];
const shown = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
const called = (element) => `${element.localName}${element.id ? `#${element.id}` : ''}${element.className ? `.${String(element.className.baseVal ?? element.className)}` : ''} ${JSON.stringify((element.innerText ?? element.textContent ?? '').slice(0, 60))}`;

// ---- contrast, by WCAG 2.2 ----

const rgba = (text) => {
  const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
  return [r, g, b, a];
};
const over = ([r, g, b, a], below) => [r, g, b].map((value, at) => value * a + below[at] * (1 - a));
const ground = (element) => {
  const above = [];
  for (let at = element; at; at = at.parentElement) {
    const colour = rgba(getComputedStyle(at).backgroundColor);
    above.push(colour);
    if (colour[3] === 1) break;
  }
  return above.reverse().reduce((below, colour) => over(colour, below), [255, 255, 255]);
};
const luminance = (colour) => {
  const [r, g, b] = colour.map((value) => { const part = value / 255; return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (one, other) => {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
};
const check = (element, colour, least, what) => {
  const below = ground(element);
  const ratio = contrast(over(rgba(colour), below), below);
  if (ratio < least) poor.push(`contrast ${ratio.toFixed(2)} of ${what} ${called(element)}`);
};
const leastFor = (style) => {
  const size = parseFloat(style.fontSize);
  return size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
};

// A modal dialog is what there is to read.
const root = document.querySelector('dialog[open]') ?? document.body;
const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
let seen = 0;
for (let node = texts.nextNode(); node; node = texts.nextNode()) {
  const element = node.parentElement;
  if (!node.data.trim() || !shown(element) || element.closest('option, :disabled, script, noscript')) continue;
  const style = getComputedStyle(element);
  check(element, style.color, leastFor(style), 'text in');
  seen += 1;
}
if (seen === 0) poor.push('there is nothing to read');
for (const field of root.querySelectorAll('input:not([type=checkbox]), select')) {
  if (!shown(field) || field.disabled) continue;
  check(field, getComputedStyle(field).color, 4.5, 'the value of');
  // Where it is has to be seen, too.
  check(field.parentElement, getComputedStyle(field).borderTopColor, 3, 'the border of');
}
// What a chart draws, and what says which is which.
for (const drawn of root.querySelectorAll('svg rect, svg path')) {
  if (!shown(drawn)) continue;
  const style = getComputedStyle(drawn);
  check(drawn.closest('svg').parentElement, drawn.localName === 'path' ? style.stroke : style.fill, 3, `what is ${drawn.getAttribute('class')} in`);
}

// ---- room ----

if (document.documentElement.scrollWidth > width) poor.push(`the page is ${document.documentElement.scrollWidth} wide, in a window of ${width}`);
for (const element of root.querySelectorAll('a, button, input, select, textarea, td, th, dd, .badge, code, figcaption, li')) {
  if (!shown(element)) continue;
  const box = element.getBoundingClientRect();
  // What is only for those who cannot see is kept left of it all.
  if (box.right <= 0 || box.width === 0) continue;
  if (box.left < -1 || box.right > width + 1) poor.push(`cut off at ${Math.round(box.left)}–${Math.round(box.right)}: ${called(element)}`);
}
for (const element of root.querySelectorAll('.scroll')) {
  if (shown(element) && element.scrollWidth > element.clientWidth + 1) poor.push(`${element.scrollWidth} wide, in a place of ${element.clientWidth}: ${called(element)}`);
}

// ---- names, and size ----

for (const element of root.querySelectorAll('a, button, input, select, dialog, [role=img]')) {
  if (!shown(element)) continue;
  const labelled = element.getAttribute('aria-labelledby');
  const name = element.getAttribute('aria-label') || (labelled && document.getElementById(labelled)?.innerText) || [...(element.labels ?? [])].map((label) => label.innerText).join(' ') || element.innerText;
  if (!name?.trim()) poor.push(`without a name: ${element.outerHTML.slice(0, 120)}`);
  // WCAG 2.2, target size; what stands in a sentence is as high as its line. A label is a part of what it is for.
  if (element.matches('button, input, select, nav a')) {
    const boxes = [element, ...(element.labels ?? [])].map((part) => part.getBoundingClientRect());
    const tall = Math.max(...boxes.map((box) => box.height));
    if (tall < 24 && !element.matches('.link')) poor.push(`${Math.round(tall)} high: ${called(element)}`);
  }
}
const ids = [...document.querySelectorAll('[id]')].map((element) => element.id);
for (const id of new Set(ids.filter((id, at) => ids.indexOf(id) !== at))) poor.push(`two have the id ${id}`);
return poor;
