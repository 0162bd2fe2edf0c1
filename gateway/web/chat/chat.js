// The chat.

export function show(section) {
  section.replaceChildren();
}

export function hide() {}
