"""The row kernel in Triton: one launch reads the logits of both sides, and writes losses and the student's gradient.

A program owns some rows and goes over their columns in blocks, three times at most:

1. what each softmax divides by, one side after the other (`log_sum`);
2. sums that the gradient needs before its first column (`divergence_sums`); left out where they are known, as for
   forward KL;
3. values and gradient of every column, written where the student's logit was read.

Short rows stay in the first-level cache between the passes. Pass 1 needs no pass for the maximum before it: every
exponential is a mantissa times a power of two and both are summed apart (arXiv 2001.04438). The logarithm of such a sum
is kept in two parts too, so that logits of ±1e4 lose nothing when it is taken from them.

Pass 3 computes, with q the student's softmax, gradient = slope - q sum(slope), where slope is the derivative of the
value to log q. Columns masked on either side (`shared` false) have no value, but stay in their own side's softmax.

Names: R rows and B columns of a block; `student` and `teacher` are pointers (R, 1) to the rows' first columns. All of
it is float32. Kept apart from `worker.kernels.rows` because Triton is not there on every machine.
"""
