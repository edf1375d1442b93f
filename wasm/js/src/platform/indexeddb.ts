import { inUse, storageFailed, within, type StateStore, type WalletStorage } from "../storage.js";

const STORE = "state";

/** IndexedDB, one database per wallet; one writer by the Web Locks API. */
export class IndexedDbStorage implements WalletStorage {
  async open(name: string): Promise<StateStore> {
    const release = await lock(name);
    try {
      return store(await connect(name), release);
    } catch (error) {
      release();
      throw storageFailed("the browser's database cannot be opened", error);
    }
  }

  async has(name: string): Promise<boolean> {
    try {
      // To open a database that is not there would make it.
      const known = await indexedDB.databases();
      if (!known.some((one) => one.name === database(name))) return false;
      const open = await connect(name);
      try {
        return (await done(open.transaction(STORE, "readonly").objectStore(STORE).count())) > 0;
      } finally {
        open.close();
      }
    } catch (error) {
      throw storageFailed("the browser's database cannot be read", error);
    }
  }

  async erase(name: string): Promise<void> {
    const release = await lock(name);
    try {
      await done(indexedDB.deleteDatabase(database(name)));
    } catch (error) {
      throw storageFailed("the wallet could not be erased yet; it may be once no other tab reads it", error);
    } finally {
      release();
    }
  }
}

function database(name: string): string {
  return `quorate/${name}`;
}

/** Holds the wallet's lock until the function that it gives is called. The browser frees it if the page dies. */
function lock(name: string): Promise<() => void> {
  return new Promise((resolve, reject) => {
    const held = (granted: Lock | null): Promise<void> | undefined => {
      if (granted === null) return void reject(inUse(name));
      return new Promise<void>((release) => resolve(release));
    };
    navigator.locks.request(database(name), { mode: "exclusive", ifAvailable: true }, held).catch(reject);
  });
}

async function connect(name: string): Promise<IDBDatabase> {
  const request = indexedDB.open(database(name), 1);
  request.onupgradeneeded = () => void request.result.createObjectStore(STORE);
  try {
    return await done(request);
  } catch (error) {
    // One that is opened after all is of no use to anybody.
    request.onsuccess = () => request.result.close();
    throw error;
  }
}

function store(database: IDBDatabase, release: () => void): StateStore {
  return {
    async load() {
      try {
        const transaction = database.transaction(STORE, "readonly");
        const objects = transaction.objectStore(STORE);
        const [keys, values] = await Promise.all([done(objects.getAllKeys()), done(objects.getAll())]);
        return new Map(keys.map((key, index) => [String(key), values[index] as Uint8Array]));
      } catch (error) {
        throw storageFailed("the browser's database cannot be read", error);
      }
    },
    async apply(change) {
      try {
        const transaction = database.transaction(STORE, "readwrite", { durability: "strict" });
        const objects = transaction.objectStore(STORE);
        for (const [key, value] of change) value === null ? objects.delete(key) : objects.put(value, key);
        const written = new Promise<void>((resolve, reject) => {
          transaction.oncomplete = () => resolve();
          transaction.onabort = () => reject(transaction.error);
        });
        await within(written).catch((error: unknown) => {
          // What is told to have failed is not written later.
          try {
            transaction.abort();
          } catch {
            // It has ended.
          }
          throw error;
        });
      } catch (error) {
        throw storageFailed("the browser's database cannot be written", error);
      }
    },
    async close() {
      database.close();
      release();
    },
  };
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  const answer = new Promise<T>((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return within(answer);
}
