// Loads a library that is no module: it sets a global variable.
const FOLDER = "/web/vendor/";
const loaded = new Map();
// The content security policy lets only this function make the address of a script.
const policy = window.trustedTypes?.createPolicy("libraries", {
  createScriptURL(path) {
    if (!path.startsWith(FOLDER)) throw new TypeError(`${path} is not in ${FOLDER}`);
    return path;
  },
});

/** A promise of the global variable `name` that the file at `path` sets. */
export function library(path, name) {
  if (!loaded.has(path)) loaded.set(path, load(path));
  return loaded.get(path).then(() => window[name]);
}

function load(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = policy ? policy.createScriptURL(path) : path;
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => {
      loaded.delete(path);
      reject(new Error(`${path} does not load`));
    });
    document.head.append(script);
  });
}
