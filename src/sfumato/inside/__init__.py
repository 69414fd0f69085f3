"""Looking inside: measurements of what a pretrained model's features, attention, latents and inversions are like.

After Jambon 2023 (*Improved 3D scene reconstruction with diffusion models*, chapter 4 and sections 6.2 and 6.3). Each
is a function that gives numbers, and one that draws them.
"""
