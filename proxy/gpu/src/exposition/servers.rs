//! Model servers: vLLM and Triton.

use super::text::samples;
use crate::reading::{Fault, ServerLoad};

/// Reads vLLM's metrics. Of several engines in one server, requests are summed and the KV caches averaged, since the
/// server spreads requests over them.
///
/// # Errors
/// When the text is too large to be read.
pub fn vllm(text: &str) -> Result<ServerLoad, Fault> {
    let (mut waiting, mut running) = (Sum::default(), Sum::default());
    let (mut cache, mut old_cache) = (Sum::default(), Sum::default());
    for sample in samples(text)? {
        match sample.name {
            "vllm:num_requests_waiting" => waiting.add(sample.value),
            "vllm:num_requests_running" => running.add(sample.value),
            "vllm:kv_cache_usage_perc" => cache.add(sample.value),
            "vllm:gpu_cache_usage_perc" => old_cache.add(sample.value),
            _ => {}
        }
    }
    let load = ServerLoad {
        waiting: waiting.total(),
        running: running.total(),
        kv_cache: cache.mean().or_else(|| old_cache.mean()),
        ..ServerLoad::default()
    };
    Ok(load.bounded())
}

/// Reads Triton's metrics, all models together. The KV cache is that of its TensorRT-LLM backend.
///
/// # Errors
/// When the text is too large to be read.
pub fn triton(text: &str) -> Result<ServerLoad, Fault> {
    let (mut waiting, mut queued) = (Sum::default(), Sum::default());
    let (mut cache, mut busy) = (Sum::default(), Sum::default());
    for sample in samples(text)? {
        match sample.name {
            "nv_inference_pending_request_count" => waiting.add(sample.value),
            "nv_inference_queue_duration_us" => queued.add(sample.value),
            "nv_gpu_utilization" => busy.add(sample.value),
            "nv_trt_llm_kv_cache_block_metrics"
                if sample.label(&["kv_cache_block_type"]) == Some("fraction") =>
            {
                cache.add(sample.value);
            }
            _ => {}
        }
    }
    let load = ServerLoad {
        waiting: waiting.total(),
        running: None,
        kv_cache: cache.mean(),
        queued_seconds_total: queued.total().map(|microseconds| microseconds / 1e6),
        busy: busy.mean(),
    };
    Ok(load.bounded())
}

/// A sum over samples. One that cannot be spoils it: a part is not the whole.
#[derive(Default)]
struct Sum {
    total: f64,
    count: u32,
    spoilt: bool,
}

impl Sum {
    fn add(&mut self, value: f64) {
        if value.is_finite() && value >= 0.0 {
            self.total += value;
            self.count += 1;
        } else {
            self.spoilt = true;
        }
    }

    fn total(&self) -> Option<f64> {
        (self.count > 0 && !self.spoilt).then_some(self.total)
    }

    fn mean(&self) -> Option<f64> {
        self.total().map(|total| total / f64::from(self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_taken_together_and_look_alikes_left_out() {
        let text = "vllm:num_requests_waiting{engine=\"0\"} 4\n\
                    vllm:num_requests_waiting{engine=\"1\"} 2\n\
                    vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 99\n\
                    vllm:num_requests_running{engine=\"0\"} 16\n\
                    vllm:gpu_cache_usage_perc{engine=\"0\"} 0.1\n\
                    vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\n\
                    vllm:kv_cache_usage_perc{engine=\"1\"} 0.75\n";
        let expected = ServerLoad {
            waiting: Some(6.0),
            running: Some(16.0),
            kv_cache: Some(0.5),
            ..ServerLoad::default()
        };
        assert_eq!(vllm(text), Ok(expected));
    }

    #[test]
    fn loads_that_cannot_be_are_not_taken() {
        for value in ["NaN", "-1", "+Inf", "-Inf", "1e300"] {
            let text = format!(
                "vllm:num_requests_waiting {value}\nvllm:kv_cache_usage_perc {value}\n\
                 vllm:num_requests_running{{engine=\"0\"}} 3\nvllm:num_requests_running{{engine=\"1\"}} {value}\n"
            );
            assert_eq!(vllm(&text), Ok(ServerLoad::default()), "{value}");
        }
    }
}
