//! [`Calibrate`] on the CPU: sums in host memory, GPTQ in f64.

use infer_core::{
    Result,
    ops::{Backend, candle::CandleOps},
};
use ndarray::ArrayView2;

use super::operations::{Calibrate, DeviceFacts, InputPair, SumShape};
use crate::solve::{
    dialect::Dialect, gptq::solve, hessian::Hessian, host_sums::HostSums, options::Options, quantized::Solved,
};

impl Calibrate for CandleOps {
    type Sums = HostSums;
    type DeviceHessian = ();

    fn facts(&self) -> DeviceFacts {
        DeviceFacts { is_host: true, multiplies_f16: false, most_tokens: 2048, most_values: usize::MAX, memory: None }
    }

    fn eight_bit(&self) -> Option<CandleOps> {
        Some(CandleOps::rounded())
    }

    fn new_sums(&mut self, shape: SumShape) -> Result<HostSums> {
        let mut sums = HostSums::new(shape.cols, shape.weights, shape.with_drift);
        if let Some(rows) = shape.stream_rows {
            sums.expect_streams(rows);
        }
        Ok(sums)
    }

    async fn add(
        &mut self,
        sums: &mut HostSums,
        x: &Self::Tensor,
        float: Option<&Self::Tensor>,
        streams: Option<[&Self::Tensor; 2]>,
    ) -> Result<()> {
        let x = self.read(x).await?;
        match float {
            None => sums.add(&x, None),
            Some(float) => sums.add(&x, Some(&self.read(float).await?)),
        }
        if let Some([stream, float]) = streams {
            let (stream, float) = (self.read(stream).await?, self.read(float).await?);
            sums.add_streams(&x, [&stream, &float]);
        }
        Ok(())
    }

    async fn finish(&mut self, sums: HostSums, late: &[InputPair<Self::Tensor>]) -> Result<(Hessian, ())> {
        assert!(late.is_empty(), "finish: the host sums drift with the inputs");
        Ok((sums.finish(), ()))
    }

    fn place(&mut self, _hessian: &Hessian) -> Result<()> {
        Ok(())
    }

    async fn solve(
        &mut self,
        weights: ArrayView2<'_, f32>,
        hessian: &Hessian,
        _on_device: &(),
        options: &Options,
    ) -> crate::Result<Solved> {
        let drifts = [hessian.drift.as_ref(), hessian.stream_drift.as_ref()];
        Ok(solve(weights, &hessian.products, drifts, options, Dialect::Own))
    }
}
