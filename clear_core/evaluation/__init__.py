"""How close the images of a folder are to an original's: FID, IS, LPIPS, CLIP-I, CLIP-T, DINO, PSNR, SSIM, MS-SSIM.

Independent of any host: the networks come as `measures.Measure`. From files to a table:

    pairs       files of two folders by their stems -> pairs
    prompts     a file with the prompts of the images
    measures    what a network or a formula gives for each image or pair: a row of numbers
    rows        these rows on disk, so that a run that was stopped goes on
    scores      rows of all images -> one number
    intervals   its confidence interval, by bootstrap
    folders     the whole evaluation, in bounded memory
    table       Markdown, CSV, JSON
"""
