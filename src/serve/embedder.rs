//! The encoder on a thread of its own: libtorch's tensors belong to one thread at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};

use image::RgbImage;
use tokio::sync::{mpsc, oneshot};

use super::error::{Answer, ApiError};
use crate::data::augment::Scratch;
use crate::error::{Error, Result};
use crate::eval::features::Input;
use crate::model::{Encoder, Layer, from_slice_nhwc, to_vec_f32};

/// Images that may wait for the encoder.
const WAITING: usize = 4;

struct Job {
    image: RgbImage,
    answer: oneshot::Sender<Vec<f32>>,
}

/// Sends images to the encoder's thread, which ends when this is dropped.
pub struct Embedder {
    jobs: mpsc::Sender<Job>,
}

impl Embedder {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start(encoder: Encoder, input: Input) -> Result<Self> {
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING);
        let work = move || {
            let mut scratch = Scratch::default();
            while let Some(Job { image, answer }) = waiting.blocking_recv() {
                // A panic is one request's failure: its answer is dropped, and the next image is taken.
                let embedded =
                    catch_unwind(AssertUnwindSafe(|| embed(&encoder, &input, &image, &mut scratch)));
                if let Ok(embedding) = embedded {
                    // Nobody may be waiting any more.
                    let _ = answer.send(embedding);
                }
            }
        };
        std::thread::Builder::new()
            .name("encoder".into())
            .spawn(work)
            .map_err(|e| Error::io("the encoder's thread", "start", e))?;
        Ok(Embedder { jobs })
    }

    /// The unit embedding `[D]` of `image`, with test-time preprocessing.
    ///
    /// # Errors
    /// 500 if libtorch failed.
    pub async fn embed(&self, image: RgbImage) -> Answer<Vec<f32>> {
        let (answer, embedding) = oneshot::channel();
        let failed = || ApiError::internal("the encoder failed on this image");
        self.jobs.send(Job { image, answer }).await.map_err(|_| failed())?;
        embedding.await.map_err(|_| failed())
    }
}

fn embed(encoder: &Encoder, input: &Input, image: &RgbImage, scratch: &mut Scratch) -> Vec<f32> {
    let side = input.transform.size as usize;
    let mut pixels = vec![0; side * side * 3];
    input.transform.apply(image, scratch, &mut pixels);
    let mut values = vec![0.0; pixels.len()];
    input.normalization.normalize_into(&pixels, &mut values);
    let features = encoder.features(&from_slice_nhwc(&values, [1, side, side]), &[Layer::Embedding]);
    to_vec_f32(&features[0])
}
