/** Conversations in IndexedDB: the only place they are kept. */

import type { Conversation } from "../chat/conversation";

const NAME = "qwenkit";
const STORE = "conversations";

let opened: Promise<IDBDatabase> | undefined;

function open(): Promise<IDBDatabase> {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function run<T>(mode: IDBTransactionMode, what: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const transaction = (await open()).transaction(STORE, mode);
  const request = what(transaction.objectStore(STORE));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

export function all(): Promise<Conversation[]> {
  return run("readonly", (store) => store.getAll() as IDBRequest<Conversation[]>);
}

export function get(id: string): Promise<Conversation | undefined> {
  return run("readonly", (store) => store.get(id) as IDBRequest<Conversation | undefined>);
}

export async function put(conversation: Conversation): Promise<void> {
  await run("readwrite", (store) => store.put(conversation));
}

export async function remove(id: string): Promise<void> {
  await run("readwrite", (store) => store.delete(id));
}
