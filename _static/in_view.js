// Which boxes scroll, so that one can tab to them, the theme asks at the start, of all: that would lay
// out the whole page. It is to ask of what is in view, and again when more comes into view.
const all = document.querySelectorAll.bind(document);
const isLaidOut = (box) => box.checkVisibility({ contentVisibilityAuto: true });
document.querySelectorAll = (selector) =>
  selector.startsWith("pre,") ? [...all(selector)].filter(isLaidOut) : all(selector);
document.addEventListener("contentvisibilityautostatechange", () =>
  dispatchEvent(new Event("resize")),
);
