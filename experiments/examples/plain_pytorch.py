"""A plain PyTorch autoencoder on digits, certified: no Lightning, no callback.

python experiments/examples/plain_pytorch.py
"""

import torch
from sklearn.datasets import load_digits

import certvae

digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
encoder, decoder = torch.nn.Linear(64, 9), torch.nn.Linear(9, 64)
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.01)
for _ in range(300):
    loss = ((decoder(encoder(images[:1200])) - images[:1200]) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# The certificate. Teacher: the labels, smoothed. Witness: logistic regression on the codes of the training rows.
teacher = 0.9 * torch.nn.functional.one_hot(torch.tensor(digits.target), 10).double() + 0.1 / 10
witness = torch.nn.Linear(9, 10)
fit = torch.optim.LBFGS(witness.parameters(), max_iter=200)
codes = encoder(images).detach()


def alignment() -> torch.Tensor:
    """One step of the fit, on training rows only."""
    fit.zero_grad()
    value = torch.nn.functional.cross_entropy(witness(codes[:1200]), teacher[:1200].float())
    value.backward()
    return value


fit.step(alignment)
print(certvae.certify(teacher[1200:], witness(codes[1200:]), method="bernstein", teacher_floor=0.1, permutations=999))
