// Conversations, stored in the browser's database.

import type { ChatMessage } from '../engine';

export interface StoredMessage extends ChatMessage {
  /** Tokens and speed of an answer, as text. */
  stats?: string;
}

export interface Conversation {
  id: string;
  title: string;
  /** Time of the last change, in milliseconds since 1970. */
  changed: number;
  messages: StoredMessage[];
}

const STORE = 'conversations';
let database: Promise<IDBDatabase> | undefined;

export function newConversation(): Conversation {
  return { id: crypto.randomUUID(), title: 'New conversation', changed: Date.now(), messages: [] };
}

/** Stores a conversation unless it is empty. */
export async function save(conversation: Conversation): Promise<void> {
  if (conversation.messages.length === 0) return;
  await run('readwrite', (store) => store.put(conversation));
}

/** All conversations, newest first. */
export async function loadAll(): Promise<Conversation[]> {
  const list = await run('readonly', (store) => store.getAll() as IDBRequest<Conversation[]>);
  return list.sort((a, b) => b.changed - a.changed);
}

export async function remove(id: string): Promise<void> {
  await run('readwrite', (store) => store.delete(id));
}

async function run<T>(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  database ??= open();
  return resultOf(act((await database).transaction(STORE, mode).objectStore(STORE)));
}

function open(): Promise<IDBDatabase> {
  const request = indexedDB.open('web-chat', 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: 'id' });
  return resultOf(request);
}

function resultOf<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error('the database failed'));
  });
}
