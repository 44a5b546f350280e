// The GPU panel: the browser's adapter, the memory that the engine uses, and decode speed as a share of the memory
// bandwidth. Updated by events, without a timer.

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
    this.render();
  }

  /** Opens the browser's adapter. */
  async open(): Promise<DeviceInfo | undefined> {
    try {
      this.info = await this.engine.device();
    } catch (thrown) {
      failure('device', thrown, [{ label: 'Try again', run: () => void this.open() }]);
    }
    this.render();
    return this.info;
  }

  update(loaded: LoadedInfo | undefined, usage?: CompletionUsage): void {
    this.loaded = loaded;
    this.usage = loaded ? (usage ?? this.usage) : undefined;
    this.render();
  }

  private async measure(): Promise<void> {
    this.isMeasuring = true;
    this.render();
    try {
      this.bandwidth = await this.engine.measureBandwidth();
    } catch (thrown) {
      failure('device', thrown);
    }
    this.isMeasuring = false;
    this.render();
  }

  private render(): void {
    const facts: [string, string][] = [];
    const { info, loaded, usage } = this;
    if (info) {
      const name = [info.vendor, info.architecture, info.description].filter(Boolean).join(' ');
      facts.push(['Adapter', `${name || 'not reported by the browser'}${info.isSoftware ? ' (software, slow)' : ''}`]);
      facts.push(['f16 in shaders', info.f16 ? 'yes' : 'no (f16 values are unpacked; arithmetic is f32 in both cases)']);
      facts.push(['Subgroups', info.subgroups ? `${[...new Set(info.subgroups)].join(' to ')} lanes` : 'not used']);
    } else {
      facts.push(['Adapter', 'not opened yet']);
    }
    if (loaded) {
      facts.push(['Memory: weights', bytes(loaded.weightBytes)]);
      facts.push([`Memory: KV cache of ${loaded.context} tokens`, bytes(loaded.cacheBytes)]);
      facts.push(['Memory: scratch', bytes(loaded.scratchBytes)], ['Memory: wasm', bytes(loaded.heapBytes)]);
    }
    if (loaded) {
      facts.push(['Self-test of the kernels', loaded.checkedCases > 0
        ? `${loaded.checkedCases} cases in ${loaded.checkedSeconds.toFixed(1)} s` : 'done earlier on this adapter']);
    }
    facts.push(['Memory bandwidth', this.bandwidth ? `${(this.bandwidth / 1e9).toFixed(1)} GB/s, reads plus writes of a copy` : 'not measured']);
    if (loaded && usage && usage.extra.decode_tokens_per_s > 0) {
      const perToken = loaded.bytesPerToken + loaded.cacheBytesPerToken * usage.total_tokens;
      const used = perToken * usage.extra.decode_tokens_per_s;
      facts.push(['Decode reads', `${bytes(perToken)} per token: ${(used / 1e9).toFixed(1)} GB/s`]);
      if (this.bandwidth) {
        const limit = this.bandwidth / perToken;
        facts.push(['Decode, share of the memory bandwidth', `${((100 * used) / this.bandwidth).toFixed(0)} % (limit: ${rate(limit)} tokens/s)`]);
      }
    }
    const button = h('button', { type: 'button', disabled: this.isMeasuring || !info, click: () => void this.measure() },
      this.isMeasuring ? 'Measuring …' : 'Measure the memory bandwidth');
    byId('device-facts').replaceChildren(listOf(facts), button, ...(info ? [limits(info)] : []));
  }
}

/** Details, closed at first. */
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
