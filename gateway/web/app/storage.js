// The browser's storage for small settings. A missing, full or damaged storage never stops the page.

/** The value under `name`, or `otherwise` if there is none, or if it has another type. */
export function read(name, otherwise, storage = "localStorage") {
  try {
    const value = JSON.parse(window[storage].getItem(name));
    return value !== null && typeof value === typeof otherwise && Array.isArray(value) === Array.isArray(otherwise)
      ? value
      : otherwise;
  } catch {
    return otherwise;
  }
}

/** True if the value is stored. */
export function write(name, value, storage = "localStorage") {
  try {
    window[storage].setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export function forget(name, storage = "localStorage") {
  try {
    window[storage].removeItem(name);
  } catch {
    // there is no storage, so there is no value
  }
}
