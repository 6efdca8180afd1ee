"""The plain loop with corrected gradients (AGENT): compare with `plain.py`."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from equipoise import GradientCorrector

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
loader = DataLoader(TensorDataset(images[:1500], labels[:1500]), batch_size=64, shuffle=True)

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
    nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10),
)  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[5, 8], gamma=0.1)

corrector = GradientCorrector(model, lambda batch: cross_entropy(model(batch[0]), batch[1]))

for _epoch in range(10):
    corrector.refresh(loader)
    for batch in loader:
        optimizer.zero_grad()
        loss = corrector.backward(batch)
        optimizer.step()
    scheduler.step()

model.eval()
accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean()
print(f"test accuracy {100 * accuracy:.1f} %")
