//! The buffers of a file.
//!
//! Promise: while writers write, batches are cut and sealed, the index takes them over and layers are retired, a reader of
//! buffers and index sees whole writes, never half of one and never an older one than before; a cut layer does not change;
//! layers retire in order, and everything charged is given back.

use crate::buffer::{FileBuffer, Piece, Pool};
use crate::explore::{Fault, Harness, planted};
use shuttle::sync::atomic::{AtomicU64, Ordering::SeqCst};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;
use std::sync::Arc;
use strongroom::base::id::Ino;
use strongroom::base::limits::CHUNK_BYTES;

pub const ALL: &[Harness] = &[
    Harness {
        name: "readers_of_a_file_see_whole_writes_while_its_layers_come_and_go",
        run: whole_writes,
        faults: &[Fault::Halves, Fault::RetiredTooEarly],
    },
    Harness { name: "two_writers_and_a_cut_lose_nothing", run: two_writers, faults: &[Fault::Halves] },
];

/// Over the boundary of two chunks, so that a write is two pieces.
const AT: u64 = CHUNK_BYTES as u64 - 40;
const LEN: usize = 100;
const BATCHES: u64 = 3;

fn write(file: &FileBuffer, batch: u64, value: u8, pool: &Pool) -> u64 {
    if planted() == Some(Fault::Halves) {
        let first = file.write(batch, AT, &[value; LEN / 2], pool).grown_bytes;
        return first + file.write(batch, AT + LEN as u64 / 2, &[value; LEN / 2], pool).grown_bytes;
    }
    file.write(batch, AT, &[value; LEN], pool).grown_bytes
}

/// What the layers and, for the gaps, the index show: one value.
fn read(file: &FileBuffer, index: &AtomicU64) -> u64 {
    let mut out = [0; LEN];
    let gaps = file.read(AT, &mut out).gaps;
    match gaps[..] {
        [] => {
            assert!(out.iter().all(|&b| b == out[0]), "half a write: {out:?}");
            u64::from(out[0])
        }
        [(AT, LEN)] => index.load(SeqCst),
        _ => panic!("half a write is in a layer: the gaps are {gaps:?}"),
    }
}

fn whole_writes() {
    let (file, pool) = (Arc::new(FileBuffer::new(Ino(2))), Pool::new(CHUNK_BYTES, 1 << 20));
    let index = Arc::new(AtomicU64::new(0));
    let written = Arc::new((Mutex::new(0), Condvar::new()));
    let charged = Arc::new(AtomicU64::new(0));
    let writer = {
        let (file, pool, written, charged) =
            (Arc::clone(&file), pool.clone(), Arc::clone(&written), Arc::clone(&charged));
        thread::spawn(move || {
            for batch in 1..=BATCHES {
                charged.fetch_add(write(&file, batch, batch as u8, &pool), SeqCst);
                *written.0.lock().unwrap() = batch;
                written.1.notify_all();
            }
        })
    };
    let flusher = {
        let (file, index, charged) = (Arc::clone(&file), Arc::clone(&index), Arc::clone(&charged));
        thread::spawn(move || {
            for batch in 1..=BATCHES {
                let mut done = written.0.lock().unwrap();
                while *done < batch {
                    done = written.1.wait(done).unwrap();
                }
                drop(done);
                let sealed: usize = file.seal_open(batch, &pool).iter().map(|c| c.data().len()).sum();
                assert_eq!(sealed, LEN, "all that was written is sealed");
                let mut shown = 0;
                for piece in file.pieces(batch) {
                    let Piece::Data(_, len, chunk, skip) = piece else { panic!("no hole was made") };
                    let data = &chunk.data()[skip as usize..(skip + len) as usize];
                    assert!(data.iter().all(|&b| u64::from(b) == batch), "a cut layer shows its own writes");
                    shown += data.len();
                }
                assert_eq!(shown, LEN);
                assert_eq!(file.retire(batch + 1), 0, "only the oldest layer retires");
                if planted() != Some(Fault::RetiredTooEarly) {
                    index.store(batch, SeqCst);
                }
                charged.fetch_sub(file.retire(batch), SeqCst);
                index.store(batch, SeqCst);
            }
        })
    };
    let readers = [(), ()].map(|()| {
        let (file, index) = (Arc::clone(&file), Arc::clone(&index));
        thread::spawn(move || {
            let mut last = 0;
            for _ in 0..4 {
                let now = read(&file, &index);
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
        })
    });
    writer.join().unwrap();
    flusher.join().unwrap();
    readers.into_iter().for_each(|r| r.join().unwrap());
    assert!(file.is_empty() && read(&file, &index) == BATCHES);
    assert_eq!(charged.load(SeqCst), 0, "everything charged was given back");
}

fn two_writers() {
    let (file, pool) = (Arc::new(FileBuffer::new(Ino(2))), Pool::new(CHUNK_BYTES, 1 << 20));
    // As the vault's gate: a writer holds it shared, the cut alone, so a write is of the batch that it began in.
    let gate = Arc::new(shuttle::sync::RwLock::new(1u64));
    let writers = [7u8, 9].map(|value| {
        let (file, pool, gate) = (Arc::clone(&file), pool.clone(), Arc::clone(&gate));
        thread::spawn(move || {
            for _ in 0..2 {
                let batch = gate.read().unwrap();
                write(&file, *batch, value, &pool);
            }
        })
    });
    let cutter = {
        let (file, pool, gate) = (Arc::clone(&file), pool.clone(), Arc::clone(&gate));
        thread::spawn(move || {
            *gate.write().unwrap() += 1;
            file.seal_open(1, &pool);
            let first: Vec<_> = file.pieces(1).into_iter().map(value_of).collect();
            assert!(first.windows(2).all(|w| w[0] == w[1]), "the pieces of a layer are of one write: {first:?}");
            first
        })
    };
    writers.into_iter().for_each(|w| w.join().unwrap());
    let first = cutter.join().unwrap();
    let again: Vec<_> = file.pieces(1).into_iter().map(value_of).collect();
    assert_eq!(first, again, "a cut layer does not change");
    let mut out = [0; LEN];
    assert!(file.read(AT, &mut out).gaps.is_empty() && out.iter().all(|&b| b == out[0]), "{out:?}");
    assert!(file.charged_bytes() > 0);
    file.retire(1);
    file.retire(2);
    assert!(file.is_empty());
}

/// The one value that a piece shows.
fn value_of(piece: Piece) -> u8 {
    let Piece::Data(_, len, chunk, skip) = piece else { panic!("no hole was made") };
    let data = &chunk.data()[skip as usize..(skip + len) as usize];
    assert!(data.iter().all(|&b| b == data[0]), "half a write: {data:?}");
    data[0]
}
