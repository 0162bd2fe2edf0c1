// Text areas that grow with their text.

/** Make the area as high as its text; the style sheet has the limit. */
export function fitHeight(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** True for Enter alone, but not for the Enter that ends the choice of a Chinese word. */
export function isEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}
