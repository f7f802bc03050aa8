"""File formats of others: weights in this project's names out to them, and in from them, bit for bit.

"Weights" are the state dict of a `Llama`. `hugging_face` has other names and the same rotary layout (halves); `meta` and
`llama2c` rotate adjacent pairs, so the rows of wq and wk go over in another order (`layout`).
"""
