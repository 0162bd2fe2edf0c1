// Loads a library that is no module: it sets a global variable.
const loaded = new Map();

/** A promise of the global variable `name` that the file at `path` sets. */
export function library(path, name) {
  if (!loaded.has(path)) loaded.set(path, load(path));
  return loaded.get(path).then(() => window[name]);
}

function load(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = path;
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => {
      loaded.delete(path);
      reject(new Error(`${path} does not load`));
    });
    document.head.append(script);
  });
}
