// The panel of models: lists stored models and the catalog; downloads, loads and deletes them.

import { EngineError, MODELS, localRef, memoryNeeded, modelRef, type Engine, type CatalogEntry, type KeptInfo, type LoadedInfo, type ModelRef, type ProgressReport } from '../engine';
import { byId, h } from './dom';
import { bytes, duration } from './format';
import { dismiss, failure, notice } from './notices';

/** Key in localStorage: bytes of the smallest model that did not fit on this device. */
const TOO_LARGE = 'too-large';
/** Lock that a tab holds while it has a model loaded. */
const LOCK = 'loaded-model';

export interface ModelEvents {
  loaded(info: LoadedInfo): void;
  unloaded(): void;
}

export class ModelPanel {
  private stored: KeptInfo[] = [];
  private current: string | undefined;
  private isBusy = false;
  private releaseLock: (() => void) | undefined;

  constructor(
    private readonly engine: Engine,
    private readonly events: ModelEvents,
    private readonly context: () => number | undefined,
  ) {
    byId('pause').addEventListener('click', () => void engine.models.pause());
    byId<HTMLFormElement>('other').addEventListener('submit', (event) => {
      event.preventDefault();
      const input = byId<HTMLInputElement>('other-name');
      void this.attempt(async () => this.fetchAndLoad(modelRef(input.value)), input.value);
    });
    byId<HTMLInputElement>('folder').addEventListener('change', (event) => {
      const { files } = event.target as HTMLInputElement;
      if (files?.length) void this.attempt(async () => this.load(localRef([...files])), 'folder');
    });
    const drop = byId('drop');
    for (const name of ['dragover', 'dragleave', 'drop'] as const) {
      document.addEventListener(name, (event) => {
        event.preventDefault();
        drop.classList.toggle('is-over', name === 'dragover');
        if (name === 'drop' && event.dataTransfer?.files.length) {
          const dropped = droppedFolder(event.dataTransfer);
          void this.attempt(async () => this.load(await dropped), 'folder');
        }
      });
    }
  }

  /** Reads the storage again and updates the list. */
  async refresh(): Promise<void> {
    try {
      this.stored = await this.engine.models.kept();
      const { usage = 0, quota = 0 } = await navigator.storage.estimate();
      const isLasting = await navigator.storage.persisted();
      byId('storage').textContent = `${bytes(usage)} used, ${bytes(quota - usage)} free for this page. `
        + (isLasting ? 'The browser keeps models until you delete them.' : 'The browser may delete models when the disk is full.');
    } catch (thrown) {
      failure('storage', thrown);
    }
    this.render();
  }

  /** Loads a model if it is completely stored. */
  async loadStored(id: string): Promise<void> {
    if (this.stored.some((stored) => stored.id === id && stored.isWhole)) await this.attempt(() => this.load(modelRef(id)), id);
  }

  private render(): void {
    const stored = this.stored.map((model) => this.storedCard(model));
    byId('stored').replaceChildren(...(stored.length ? stored : [h('li', {}, 'No models yet.')]));
    const ids = new Set(this.stored.filter((model) => model.isWhole).map((model) => model.id));
    const others = MODELS.filter((model) => !ids.has(model.id));
    byId('catalog').replaceChildren(...others.map((model) => this.catalogCard(model)));
  }

  private storedCard(model: KeptInfo): HTMLLIElement {
    const isLoaded = model.id === this.current;
    const state = isLoaded ? 'loaded' : model.isWhole ? 'complete' : `${bytes(model.bytes)} of ${model.total ? bytes(model.total) : 'unknown'}`;
    const label = model.isWhole ? 'Load' : 'Resume';
    return h('li', { 'data-model': model.id },
      h('strong', {}, nameOf(model.id)), h('span', { class: 'hint' }, `${bytes(model.bytes)}, ${state}. ${model.id}`),
      h('div', { class: 'row' },
        h('button', { type: 'button', disabled: this.isBusy || isLoaded, 'aria-label': `${label}: ${nameOf(model.id)}`,
          click: () => void this.attempt(() => this.fetchAndLoad(modelRef(model.id)), model.id) }, label),
        h('button', { type: 'button', disabled: this.isBusy, 'aria-label': `Delete: ${nameOf(model.id)}`,
          click: () => void this.attempt(() => this.remove(model.id), model.id) }, 'Delete')));
  }

  private catalogCard(model: CatalogEntry): HTMLLIElement {
    const memory = memoryNeeded(model, this.context());
    return h('li', { 'data-model': model.id },
      h('strong', {}, model.name, ...(model.ours ? [' ', h('span', { class: 'badge' }, 'this project')] : [])),
      h('span', { class: 'hint' }, `${bytes(model.bytes)} to download, ${bytes(memory)} of GPU memory (${fits(memory)}). License: ${model.license}.`),
      h('div', { class: 'row' },
        h('button', { type: 'button', disabled: this.isBusy, 'aria-label': `Download: ${model.name}`,
          click: () => void this.attempt(() => this.fetchAndLoad(modelRef(model.id)), model.id) }, 'Download')));
  }

  /** Runs an action unless another one is running. Errors become notices. */
  private async attempt(work: () => Promise<void>, id: string): Promise<void> {
    if (this.isBusy) return;
    this.isBusy = true;
    dismiss('models');
    this.render();
    const again = { label: 'Try again', run: () => void this.attempt(work, id) };
    try {
      await work();
    } catch (thrown) {
      const error = EngineError.from(thrown);
      if (error.kind === 'Paused') notice('models', 'The download is paused', 'The downloaded part is stored.', [{ ...again, label: 'Resume' }]);
      else if (error.kind === 'OtherTab') failure('models', error, [{ label: 'Load here too', run: () => void this.attempt(() => this.load(modelRef(id), true), id) }]);
      else failure('models', error, error.kind === 'BadParameter' || error.kind === 'NotRunnable' ? [] : [again]);
    }
    this.isBusy = false;
    byId('transfer').hidden = true;
    await this.refresh();
  }

  private async fetchAndLoad(model: ModelRef): Promise<void> {
    const plan = await this.engine.models.plan(model);
    if (!plan.isWhole) {
      const { usage = 0, quota = 0 } = await navigator.storage.estimate();
      const missing = plan.weightBytes - plan.done;
      if (missing > quota - usage) {
        throw new EngineError('StorageFull', `the model needs ${bytes(missing)} more, and the browser has ${bytes(quota - usage)} for this page`,
          'delete a stored model, free space on the disk, or drop a folder on the page, which is not copied');
      }
      // Some browsers ask the user. Do not wait: Firefox may never resolve this.
      void navigator.storage.persist().catch(() => undefined);
      await this.engine.models.download(model, (report) => this.meter(model, report));
    }
    await this.load(model);
  }

  private async load(model: ModelRef, shares = false): Promise<void> {
    await this.lock(shares);
    this.current = undefined;
    this.events.unloaded();
    const context = this.context();
    try {
      const options = { ...(context === undefined ? {} : { context }), onProgress: (report: ProgressReport) => this.meter(model, report) };
      const loaded = await this.engine.reload(model, options);
      this.current = model.id;
      if (!model.files) localStorage.setItem('model', model.id);
      this.events.loaded(loaded);
    } catch (thrown) {
      const error = EngineError.from(thrown);
      if (error.kind === 'OutOfMemory') {
        const needed = (await this.engine.models.plan(model).catch(() => undefined))?.weightBytes ?? 0;
        const known = Number(localStorage.getItem(TOO_LARGE) ?? Infinity);
        if (needed > 0 && needed < known) localStorage.setItem(TOO_LARGE, String(needed));
        throw new EngineError('OutOfMemory', error.message, 'set a shorter context in the settings, choose a smaller model, or close what else uses the GPU');
      }
      throw error;
    }
  }

  private async remove(id: string): Promise<void> {
    await this.engine.models.remove(id);
    if (id === this.current) {
      this.current = undefined;
      this.events.unloaded();
    }
  }

  /** Takes the lock of this browser's loaded model, because two tabs need twice the memory. The browser frees it with the tab. */
  private async lock(shares: boolean): Promise<void> {
    if (this.releaseLock || !navigator.locks) return;
    const isMine = await new Promise<boolean>((resolve) => {
      void navigator.locks.request(LOCK, { ifAvailable: true }, (lock) => {
        resolve(lock !== null);
        return lock === null ? undefined : new Promise<void>((release) => { this.releaseLock = release; });
      });
    });
    if (!isMine && !shares) {
      throw new EngineError('OtherTab', 'another tab of this page has a model loaded', 'close that tab, or load the model here too, which needs the memory twice');
    }
  }

  private meter(model: ModelRef, { phase, progress, bytes: done, totalBytes, bytesPerSecond }: ProgressReport): void {
    const speed = bytesPerSecond > 0
      ? `, ${bytes(bytesPerSecond)}/s, ${duration((totalBytes - done) / bytesPerSecond)} left` : '';
    const isDownload = phase === 'download';
    byId('transfer').hidden = false;
    byId('pause').hidden = !isDownload;
    byId('transfer-text').textContent = `${isDownload ? 'Downloading' : 'Loading'} ${nameOf(model.id)}: ${bytes(done)} of `
      + `${bytes(totalBytes)}${speed}`;
    byId<HTMLProgressElement>('transfer-bar').value = progress;
  }
}

/** Display name of a model: from the catalog, else the last part of its address. */
export function nameOf(id: string): string {
  return MODELS.find((model) => model.id === id)?.name ?? decodeURIComponent(id.replace(/^local:/, '').split('/').at(-1) || id);
}

/** Common memory sizes of GPUs, in GB. */
const GPU_SIZES = [1, 2, 3, 4, 6, 8, 12, 16, 24];

/** Estimates if a model fits. Browsers do not report GPU memory, so this uses earlier failures and the machine's memory. */
function fits(memory: number): string {
  const failed = Number(localStorage.getItem(TOO_LARGE) ?? Infinity);
  if (memory >= failed) return 'a model of this size did not fit before';
  const machine = (navigator as { deviceMemory?: number }).deviceMemory;
  if (machine !== undefined && machine < 8 && memory > machine * 0.6e9) return `may be too much for this machine’s ${machine} GB`;
  // Other programs need about a tenth.
  const size = GPU_SIZES.find((size) => memory < size * 0.9e9);
  return size === undefined ? 'for a very large GPU' : `for a GPU of ${size} GB or more`;
}

/** The model in dropped items: a folder, or its files. */
async function droppedFolder(transfer: DataTransfer): Promise<ModelRef> {
  // Read both before the event ends, which empties them.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry());
  const files = [...transfer.files];
  const folder = entries.find((entry): entry is FileSystemDirectoryEntry => entry?.isDirectory === true);
  if (!folder) return localRef(files);
  const reader = folder.createReader();
  const found: File[] = [];
  for (;;) {
    const batch = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (batch.length === 0) return localRef(found, folder.name);
    for (const entry of batch) {
      if (entry.isFile) found.push(await new Promise((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject)));
    }
  }
}
