// Reads once a second while the page is visible. Waits longer and longer while the gateway is away.
const EVERY_MS = 1000;
const LONGEST_READ_MS = 20000;
const WAITS_S = [1, 2, 3, 5, 10, 15];

/**
 * Call `read(signal)`, then `show(value)`, once a second. `away(seconds, error)` is called once a second while there is no
 * answer, with the seconds until the next try. `refused(error)` is called for a missing key; `retry` continues then.
 * Returns `{stop, retry}`.
 */
export function startPolling({ read, show, away, refused }) {
  let timer = 0;
  let failures = 0;
  let waitS = 0;
  let lastError = null;
  let reading = null;
  let isOver = false;

  const plan = (ms) => {
    clearTimeout(timer);
    timer = setTimeout(tick, ms);
  };

  function tick() {
    if (isOver || document.hidden || reading) return;
    if (waitS > 1) {
      waitS -= 1;
      away(waitS, lastError);
      plan(EVERY_MS);
    } else {
      once();
    }
  }

  async function once() {
    reading = new AbortController();
    const limit = setTimeout(() => reading.abort(), LONGEST_READ_MS);
    let value;
    try {
      value = await read(reading.signal);
    } catch (error) {
      failed(error);
      return;
    } finally {
      clearTimeout(limit);
      reading = null;
    }
    if (isOver) return;
    failures = waitS = 0;
    plan(EVERY_MS);
    show(value);
  }

  function failed(error) {
    if (isOver) return;
    if (error.status === 401 || error.status === 403) {
      refused(error);
      return;
    }
    lastError = error;
    waitS = WAITS_S[Math.min(failures, WAITS_S.length - 1)];
    failures += 1;
    away(waitS, error);
    plan(EVERY_MS);
  }

  function retry() {
    waitS = 0;
    tick();
  }

  document.addEventListener("visibilitychange", retry);
  tick();
  return {
    retry,
    stop() {
      isOver = true;
      clearTimeout(timer);
      reading?.abort();
      document.removeEventListener("visibilitychange", retry);
    },
  };
}
