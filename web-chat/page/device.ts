// The GPU panel: what the browser says of the adapter, what the engine holds of its memory, and how far decoding is from
// what the memory could do. Asked when something has happened, never on a clock.

import type { CompletionUsage, DeviceInfo, Engine, LoadedInfo } from '../engine';
import { byId, h } from './dom';
import { bytes, rate } from './format';
import { failure } from './notices';

export class DevicePanel {
  private info: DeviceInfo | undefined;
  private bandwidth: number | undefined;
  private isMeasuring = false;
  private loaded: LoadedInfo | undefined;
  private usage: CompletionUsage | undefined;

  constructor(private readonly engine: Engine) {
    this.show();
  }

  /** Asks the browser for its adapter. */
  async open(): Promise<DeviceInfo | undefined> {
    try {
      this.info = await this.engine.device();
    } catch (thrown) {
      failure('device', thrown, [{ label: 'Try again', run: () => void this.open() }]);
    }
    this.show();
    return this.info;
  }

  update(loaded: LoadedInfo | undefined, usage?: CompletionUsage): void {
    this.loaded = loaded;
    this.usage = loaded ? (usage ?? this.usage) : undefined;
    this.show();
  }

  private async measure(): Promise<void> {
    this.isMeasuring = true;
    this.show();
    try {
      this.bandwidth = await this.engine.measureBandwidth();
    } catch (thrown) {
      failure('device', thrown);
    }
    this.isMeasuring = false;
    this.show();
  }

  private show(): void {
    const facts: [string, string][] = [];
    const { info, loaded, usage } = this;
    if (info) {
      const name = [info.vendor, info.architecture, info.description].filter(Boolean).join(' ');
      facts.push(['Adapter', `${name || 'the browser does not say'}${info.isSoftware ? ' (software: slow)' : ''}`]);
      facts.push(['f16 in shaders', info.f16 ? 'yes' : 'no (weights stay f16, arithmetic is f32 either way)']);
      facts.push(['Subgroups', info.subgroups ? `${info.subgroups[0]} to ${info.subgroups[1]} lanes` : 'not used']);
    } else {
      facts.push(['Adapter', 'not opened yet']);
    }
    if (loaded) {
      facts.push(['Memory: weights', bytes(loaded.weightBytes)]);
      facts.push([`Memory: cache of ${loaded.context} tokens`, bytes(loaded.cacheBytes)]);
      facts.push(['Memory: scratch', bytes(loaded.scratchBytes)], ['Memory of the page’s own engine', bytes(loaded.heapBytes)]);
    }
    if (loaded) {
      facts.push(['Kernels against their references', loaded.checkedCases > 0
        ? `${loaded.checkedCases} checked in ${loaded.checkedSeconds.toFixed(1)} s` : 'checked before on this adapter']);
    }
    facts.push(['Measured copy bandwidth', this.bandwidth ? `${(this.bandwidth / 1e9).toFixed(1)} GB/s, read and written together` : 'not measured']);
    if (loaded && usage && usage.extra.decode_tokens_per_s > 0) {
      const perToken = loaded.bytesPerToken + loaded.cacheBytesPerToken * usage.total_tokens;
      const used = perToken * usage.extra.decode_tokens_per_s;
      facts.push(['Decoding reads', `${bytes(perToken)} per token: ${(used / 1e9).toFixed(1)} GB/s`]);
      if (this.bandwidth) {
        const limit = this.bandwidth / perToken;
        facts.push(['Decoding, of what the memory could do', `${((100 * used) / this.bandwidth).toFixed(0)} % (limit: ${rate(limit)} tokens/s)`]);
      }
    }
    const button = h('button', { type: 'button', disabled: this.isMeasuring || !info, click: () => void this.measure() },
      this.isMeasuring ? 'Measuring …' : 'Measure the memory’s bandwidth');
    byId('device-facts').replaceChildren(listOf(facts), button, ...(info ? [limits(info)] : []));
  }
}

/** What seldom matters, to be opened. */
function limits(info: DeviceInfo): HTMLElement {
  const facts: [string, string][] = [
    ['Largest buffer', bytes(info.maxBuffer)],
    ['Largest binding', bytes(info.maxBinding)],
    ['Workgroup memory', bytes(info.limits['maxComputeWorkgroupStorageSize'] ?? 0)],
    ['Invocations per workgroup', String(info.limits['maxComputeInvocationsPerWorkgroup'] ?? 0)],
    ['Features', info.features.join(', ') || 'none'],
  ];
  return h('details', {}, h('summary', {}, 'Limits and features'), listOf(facts));
}

function listOf(facts: [string, string][]): HTMLElement {
  return h('dl', {}, ...facts.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))));
}
