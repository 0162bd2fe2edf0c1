// The conversations of this tab: the one that is shown, and those with an answer in progress. It outlives the view.
import { read, write } from "../app/storage.js";
import { Answer, bodyOf } from "./answer.js";
import { defaultSettings } from "./settings.js";
import * as store from "./store.js";
import { addNode, newConversation, nodeOf, pathTo } from "./tree.js";

const SAVE_MS = 2_000; // between two saves of an answer in progress
const CURRENT = "conversation"; // in sessionStorage: each tab has its own

export class Session {
  #answers = new Map(); // id of a conversation -> {conversation, answer, savedAt}
  #stored = new Set(); // ids
  conversation = newConversation(read("model", ""), defaultSettings());
  entries = [];
  draft = { text: read("draft", "", "sessionStorage"), files: [] };
  problem = ""; // "memory", "full" or "": why conversations may be lost

  /** The view sets these: `onShow()` another conversation, `onNode(node)` a message changed, `onList()`. */
  onShow = () => {};
  onNode = () => {};
  onList = () => {};

  constructor() {
    store.onOtherTab((change) => this.#otherTab(change));
    addEventListener("pagehide", () => this.#answers.forEach(({ conversation }) => store.save(conversation, false)));
  }

  async start() {
    if (!(await store.isKept())) this.problem = "memory";
    await this.refreshList();
    const last = read(CURRENT, "", "sessionStorage");
    if (last && !this.conversation.nodes.length) await this.open(last);
  }

  get liveIds() {
    return new Set(this.#answers.keys());
  }

  get isLive() {
    return this.#answers.has(this.conversation.id);
  }

  create() {
    this.#show(newConversation(this.conversation.model || read("model", ""), defaultSettings()));
  }

  async open(id) {
    const conversation = this.#answers.get(id)?.conversation ?? (await this.#load(id));
    if (conversation) this.#show(conversation);
    else await this.refreshList();
  }

  async rename(id, title) {
    const conversation = id === this.conversation.id ? this.conversation : await this.#load(id);
    if (!conversation) return;
    conversation.title = title;
    await this.#save(conversation);
  }

  async remove(id) {
    this.#answers.get(id)?.answer.stop();
    this.#answers.delete(id);
    this.#stored.delete(id);
    await store.remove(id).catch(() => {});
    if (id === this.conversation.id) this.create();
    await this.refreshList();
  }

  /** Add conversations of a file. Shows the first. */
  async add(conversations) {
    for (const conversation of conversations) await this.#save(conversation);
    await this.open(conversations[0].id);
  }

  /** The conversations with these ids, as they are stored. */
  async all(ids) {
    const found = await Promise.all(ids.map((id) => this.#load(id)));
    return found.filter((conversation) => conversation !== null);
  }

  pick(model) {
    this.conversation.model = model;
    write("model", model);
    if (this.conversation.nodes.length) this.#save(this.conversation);
  }

  changeSettings(settings) {
    this.conversation.settings = settings;
    if (this.conversation.nodes.length) this.#save(this.conversation);
  }

  /** Show another version of a message. */
  changeLeaf(change) {
    change(this.conversation);
    this.#save(this.conversation);
    this.onShow();
  }

  /** Add a message of the user after `parent`, and the answer to it. */
  send(parent, { content, attachments }) {
    const node = addNode(this.conversation, parent, { role: "user", content, attachments });
    this.answer(node.id);
  }

  /** A new answer to the message `parent`. */
  answer(parent) {
    this.#run(addNode(this.conversation, parent, { role: "assistant" }));
  }

  /** Go on with an answer that was cut: the model gets its text as the start of the new one. */
  goOn(node) {
    this.conversation.leaf = node.id;
    Object.assign(node, { error: null, usage: null, dropped: 0 });
    this.#run(node);
  }

  #run(node) {
    const { conversation } = this;
    Object.assign(node, { model: conversation.model, ending: "" });
    const path = pathTo(conversation, node.content ? node.id : node.parent);
    const body = bodyOf(conversation.model, path, conversation.settings);
    const running = { conversation, savedAt: Date.now() };
    running.answer = new Answer(node, body, {
      onChange: () => this.#changed(running, node),
      onEnd: () => this.#ended(running, node),
    });
    this.#answers.set(conversation.id, running);
    write(CURRENT, conversation.id, "sessionStorage");
    this.#save(conversation);
    this.onShow();
    this.onNode(node);
  }

  stop() {
    this.#answers.get(this.conversation.id)?.answer.stop();
  }

  async refreshList() {
    this.entries = await store.list().catch(() => []);
    this.onList();
  }

  #changed(running, node) {
    if (this.#answers.get(running.conversation.id) !== running) return; // deleted
    this.#shown(running.conversation, node);
    if (Date.now() - running.savedAt < SAVE_MS) return;
    running.savedAt = Date.now();
    this.#save(running.conversation);
  }

  #ended(running, node) {
    const { conversation } = running;
    if (this.#answers.get(conversation.id) !== running) return; // deleted
    this.#answers.delete(conversation.id);
    this.#save(conversation);
    this.#shown(conversation, node);
    this.onList();
  }

  #shown(conversation, node) {
    if (conversation.id === this.conversation.id) this.onNode(node);
  }

  #show(conversation) {
    this.conversation = conversation;
    write(CURRENT, conversation.id, "sessionStorage");
    this.onShow();
    this.onList();
  }

  async #load(id) {
    const conversation = await store.load(id).catch(() => null);
    if (conversation) this.#stored.add(id);
    return conversation;
  }

  async #save(conversation) {
    const isNew = !this.#stored.has(conversation.id);
    this.#stored.add(conversation.id);
    const result = await store.save(conversation, isNew);
    if (result === "deleted") return this.remove(conversation.id);
    if (this.problem !== "memory") this.problem = result === "full" ? "full" : "";
    return this.refreshList();
  }

  async #otherTab({ id, deleted }) {
    if (deleted && this.#stored.has(id)) this.#forget(id);
    else if (id === this.conversation.id && !this.isLive && this.conversation.nodes.length) await this.#reload(id);
    await this.refreshList();
  }

  #forget(id) {
    this.#answers.get(id)?.answer.stop();
    this.#answers.delete(id);
    this.#stored.delete(id);
    if (id === this.conversation.id) this.create();
  }

  /** Show what another tab has added, at the message that this tab shows. */
  async #reload(id) {
    const fresh = await this.#load(id);
    if (!fresh || id !== this.conversation.id || this.isLive) return;
    const { leaf } = this.conversation;
    if (nodeOf(fresh, leaf) && !fresh.nodes.some((node) => node.parent === leaf)) fresh.leaf = leaf;
    this.conversation = fresh;
    this.onShow();
  }
}
