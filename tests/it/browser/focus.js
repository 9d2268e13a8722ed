// What is wrong with the focus as it is seen now; null where nothing is.
const at = document.activeElement;
// Behind the last element the focus is on the window, and the next Tab comes to the first.
if (at === document.body) return null;
const style = getComputedStyle(at), box = at.getBoundingClientRect();
const isDrawn = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
const isThere = box.width > 0 && box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight;
return isDrawn && isThere ? null : `${at.outerHTML.slice(0, 120)}: outline ${style.outline}, at ${JSON.stringify(box)}`;
