"""The row kernel in Triton: one launch reads the logits of student and teacher, and writes losses and the student's
gradient.

A program processes some rows, with at most three passes over their columns in blocks:

1. the divisor of each softmax, student and teacher in turn (`log_sum`);
2. sums that the gradient needs before its first column (`divergence_sums`); left out if they are known, as for
   forward KL;
3. values and gradient of every column, which is written over the student's logit.

Short rows stay in the first-level cache between the passes. Pass 1 needs no pass for the maximum before it: every
exponential is a mantissa times a power of two and both are summed separately (arXiv 2001.04438). The logarithm of such
a sum has two parts too, so that subtracting it from logits of ±1e4 loses no precision.

Pass 3 computes, with q the student's softmax, gradient = slope - q sum(slope), where slope is the derivative of the
value to log q. Columns masked on either side (`shared` false) have no value, but stay in their own side's softmax.

Names: R rows and B columns of a block; `student` and `teacher` are pointers (R, 1) to the rows' first columns. All of
it is float32. Separate from `worker.kernels.rows` because Triton is not available on every machine.
"""
