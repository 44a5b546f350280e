// Conversations, kept in the browser's database.

import type { ChatMessage } from '../engine';

export interface Said extends ChatMessage {
  /** What an answer took, in words. */
  stats?: string;
}

export interface Conversation {
  id: string;
  title: string;
  changed: number;
  messages: Said[];
}

const STORE = 'conversations';
let opened: Promise<IDBDatabase> | undefined;

export function newConversation(): Conversation {
  return { id: crypto.randomUUID(), title: 'New conversation', changed: Date.now(), messages: [] };
}

/** Keeps a conversation; an empty one is not worth it. */
export async function keep(conversation: Conversation): Promise<void> {
  if (conversation.messages.length === 0) return;
  await run('readwrite', (store) => store.put(conversation));
}

/** All of them, the last one first. */
export async function all(): Promise<Conversation[]> {
  const list = await run('readonly', (store) => store.getAll() as IDBRequest<Conversation[]>);
  return list.sort((a, b) => b.changed - a.changed);
}

export async function remove(id: string): Promise<void> {
  await run('readwrite', (store) => store.delete(id));
}

async function run<T>(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  opened ??= open();
  return settled(act((await opened).transaction(STORE, mode).objectStore(STORE)));
}

function open(): Promise<IDBDatabase> {
  const request = indexedDB.open('web-chat', 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: 'id' });
  return settled(request);
}

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error('the database failed'));
  });
}
