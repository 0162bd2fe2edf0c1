// The API key. It is kept until the tab closes, or in this browser if the user wants that.
import { forget, read, write } from "./storage.js";

let current = read("key", "", "sessionStorage") || read("key", "");

export const key = () => current;
export const isRemembered = () => read("key", "") !== "";

export function setKey(value, remember) {
  current = value;
  forget("key");
  forget("key", "sessionStorage");
  if (value) write("key", value, remember ? "localStorage" : "sessionStorage");
}
