// The live view.

export function show(section) {
  section.replaceChildren();
}

export function hide() {}
